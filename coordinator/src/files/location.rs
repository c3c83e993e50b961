//! What a location in SQL stands for: a path or pattern below the import
//! roots, or a URL of an object store.

use std::path::{Component, Path, PathBuf};

use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::DataFusionError;
use glob::{MatchOptions, Pattern};
use shoal_data::ImportRoots;
use url::Url;

use crate::Error;

/// Files that one statement may name.
const FILES_MAX: usize = 10_000;

/// Where files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// An absolute path on the coordinator, possibly a pattern; it is below
    /// no root for certain until [`expand`] or [`ImportRoots::resolve`] says so.
    Local(PathBuf),
    /// A URL for the object stores that the session knows.
    Remote(Url),
}

/// Reads a location as SQL has it: an absolute path, one relative to the first
/// import root, `file://`, or a URL such as `s3://bucket/key`. The disk is not
/// touched.
///
/// # Errors
/// `Invalid` for a path with `..`, an unreadable URL, or a relative path
/// without import roots.
pub fn resolve(roots: &ImportRoots, location: &str) -> Result<Location, Error> {
    if location.is_empty() || location.contains('\0') {
        return Err(Error::Invalid(format!("`{}` is not a path", location.escape_debug())));
    }
    let path = match location.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("file") => match rest.strip_prefix('/') {
            Some(_) => rest,
            None => {
                return Err(Error::Invalid(format!(
                    "`{location}` names a host; write the path as file:///path"
                )));
            }
        },
        Some((scheme, _)) if is_scheme(scheme) => {
            let url = Url::parse(location)
                .map_err(|error| Error::Invalid(format!("`{location}` is not a URL: {error}")))?;
            return Ok(Location::Remote(url));
        }
        _ => location,
    };
    let path = Path::new(path);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Error::Invalid(format!("`{location}` contains `..`: write the path without it")));
    }
    if path.is_absolute() {
        return Ok(Location::Local(path.to_owned()));
    }
    match roots.directories().first() {
        Some(root) => Ok(Location::Local(root.join(path))),
        None => Err(Error::Invalid(format!(
            "`{location}` cannot be read: no import roots are configured; start the coordinator with --import-root DIR"
        ))),
    }
}

/// A URL as DataFusion lists what is below it. It takes patterns from paths
/// only, so the pattern in a URL is cut off here.
///
/// # Errors
/// Where the pattern is none.
pub(super) fn listing_url(url: &Url) -> Result<ListingTableUrl, DataFusionError> {
    let path = url.path();
    let Some(wildcard) = path.find(['*', '?', '[']) else { return ListingTableUrl::parse(url.as_str()) };
    let (folder, pattern) = path.split_at(path[..wildcard].rfind('/').map_or(0, |slash| slash + 1));
    let pattern = glob::Pattern::new(pattern).map_err(|error| DataFusionError::External(Box::new(error)))?;
    let mut base = url.clone();
    base.set_path(folder);
    ListingTableUrl::try_new(base, Some(pattern))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The files that a local location stands for, canonical and sorted: the file
/// itself, what a pattern matches, or the files in a directory (without those
/// whose name begins with `.` or `_`). Reads directories: call it where
/// blocking is allowed.
///
/// # Errors
/// `NotFound` where there is no file; `Invalid` for anything outside the
/// import roots, also through a symlink, and for more than 10,000 files.
pub fn expand(roots: &ImportRoots, location: &Path) -> Result<Vec<PathBuf>, Error> {
    let shown = location.display();
    let text = location.to_str().ok_or_else(|| Error::Invalid(format!("`{shown}` is not UTF-8")))?;
    let mut files = if is_pattern(text) {
        // A file may have such characters in its name.
        match roots.resolve(location) {
            Ok(file) if file.is_file() => vec![file],
            _ => matches(roots, location)?,
        }
    } else {
        let found = roots.resolve(location)?;
        if found.is_dir() { listed(roots, &found)? } else { vec![found] }
    };
    if files.is_empty() {
        return Err(Error::NotFound(format!("no file matches `{shown}`")));
    }
    for file in &files {
        if !file.is_file() {
            return Err(Error::Invalid(format!("`{}` is not a file", file.display())));
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// What a pattern matches. The part of it without wildcards must be below a
/// root before any directory is read.
fn matches(roots: &ImportRoots, pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let shown = pattern.display();
    // A root's own name may have characters that patterns give a meaning to.
    let root = roots.directories().iter().find(|root| pattern.starts_with(root));
    let rooted = root.map_or(Path::new("/"), PathBuf::as_path);
    let below = pattern.strip_prefix(rooted).unwrap_or(pattern);
    let plain_count =
        below.iter().take_while(|part| part.to_str().is_some_and(|part| !is_pattern(part))).count();
    let plain: PathBuf = below.iter().take(plain_count).collect();
    let rest: PathBuf = below.iter().skip(plain_count).collect();
    let directory = roots.resolve(&rooted.join(plain))?;
    let whole = Path::new(&Pattern::escape(&directory.to_string_lossy())).join(rest);
    let whole = whole.to_str().ok_or_else(|| Error::Invalid(format!("`{shown}` is not UTF-8")))?;
    let options = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let found = glob::glob_with(whole, options)
        .map_err(|error| Error::Invalid(format!("`{shown}` is not a pattern: {error}")))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|error| {
            let what = format!("cannot read `{}`", error.path().display());
            Error::io(what, error.into())
        })?;
        let file = roots.resolve(&path)?;
        if file.is_file() {
            push(&mut files, file, pattern)?;
        }
    }
    Ok(files)
}

fn listed(roots: &ImportRoots, directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let cannot = |error| Error::io(format!("cannot read directory `{}`", directory.display()), error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(['.', '_'])) {
            continue;
        }
        let path = roots.resolve(&entry.path())?;
        if path.is_file() {
            push(&mut files, path, directory)?;
        }
    }
    Ok(files)
}

fn push(files: &mut Vec<PathBuf>, file: PathBuf, location: &Path) -> Result<(), Error> {
    if files.len() == FILES_MAX {
        return Err(Error::Exhausted(format!(
            "`{}` stands for more than {FILES_MAX} files: load them in several statements",
            location.display()
        )));
    }
    files.push(file);
    Ok(())
}
