//! The layers that settings are looked up in, and the record of where each
//! was found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use toml::de::{DeTable, DeValue};

use super::error::{flag, variable};
use super::{ConfigError, Resolved, Source, Value, source};

/// Variables that are no settings of a node, but are ours.
const OTHER_VARIABLES: [&str; 7] = [
    "SHOAL_CONFIG",
    "SHOAL_URI",
    "SHOAL_HISTORY",
    "SHOAL_CI_TARGET",
    "SHOAL_FAULT_POINTS",
    "SHOAL_LOG",
    "SHOAL_TEST_SEED",
];
/// How alike a key must be to be offered instead of a misspelt one.
const HINT_LIKENESS_MIN: f64 = 0.7;

/// Flags, environment and file of one node. Ask it for every setting, then
/// call [`Layers::finish`].
pub struct Layers {
    command: &'static str,
    flags: BTreeMap<String, Vec<String>>,
    environment: BTreeMap<String, String>,
    file: Option<FileLayer>,
    resolved: Vec<Resolved>,
    missing: Vec<&'static str>,
}

struct FileLayer {
    path: PathBuf,
    /// Values by key, with the line of the key.
    values: BTreeMap<String, (usize, Vec<String>)>,
}

impl Layers {
    /// The layers of `shoal <command>`: what was parsed from its command
    /// line, the environment, and the file that `--config` or `SHOAL_CONFIG`
    /// names.
    ///
    /// # Errors
    /// `Read` or `Syntax` for the file.
    pub fn new(
        command: &'static str,
        matches: &ArgMatches,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let environment: BTreeMap<_, _> =
            environment.into_iter().filter(|(name, _)| name.starts_with("SHOAL_")).collect();
        let flags: BTreeMap<_, _> = matches
            .ids()
            .filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine))
            .filter_map(|id| {
                let values = matches.try_get_raw(id.as_str()).ok()??;
                let values: Vec<_> = values.map(|value| value.to_string_lossy().into_owned()).collect();
                // A switch has no value of its own: being there is its value.
                let values = if values.is_empty() { vec!["true".to_owned()] } else { values };
                Some((id.as_str().to_owned(), values))
            })
            .collect();
        let path =
            flags.get("config").and_then(|values| values.first()).or_else(|| environment.get("SHOAL_CONFIG"));
        let file = path.map(|path| FileLayer::read(Path::new(path))).transpose()?;
        Ok(Self { command, flags, environment, file, resolved: Vec::new(), missing: Vec::new() })
    }

    /// A setting with a default.
    ///
    /// # Errors
    /// `Invalid` where the value that wins does not parse.
    pub fn value<V: Value>(
        &mut self,
        key: &'static str,
        default: impl FnOnce() -> V,
    ) -> Result<V, ConfigError> {
        Ok(match self.find(key)? {
            Some((value, source)) => self.record(key, value, source),
            None => self.record(key, default(), Source::Default),
        })
    }

    /// A setting that may be left out.
    ///
    /// # Errors
    /// `Invalid` where the value that wins does not parse.
    pub fn optional<V: Value>(&mut self, key: &'static str) -> Result<Option<V>, ConfigError> {
        let Some((value, source)) = self.find(key)? else {
            self.resolved.push(Resolved { key, value: None, source: Source::Default });
            return Ok(None);
        };
        Ok(Some(self.record(key, value, source)))
    }

    /// A setting that must be given; [`Layers::finish`] fails where it was
    /// not, and the value that is returned here is a stand-in.
    ///
    /// # Errors
    /// `Invalid` where the value that wins does not parse.
    pub fn required<V: Value + Default>(&mut self, key: &'static str) -> Result<V, ConfigError> {
        let value = self.optional(key)?;
        if value.is_none() {
            self.missing.push(key);
        }
        Ok(value.unwrap_or_default())
    }

    /// A setting with any number of values: a repeated flag, commas in the
    /// environment, an array in the file. The layer that wins gives all.
    ///
    /// # Errors
    /// `Invalid` where one of them does not parse.
    pub fn list<V: Value>(&mut self, key: &'static str) -> Result<Vec<V>, ConfigError> {
        let (texts, source) = match self.raw(key) {
            Some((texts, source @ Source::File(_))) => (texts, source),
            Some((texts, source)) => (
                texts.iter().flat_map(|text| text.split(',')).map(|text| text.trim().to_owned()).collect(),
                source,
            ),
            None => (Vec::new(), Source::Default),
        };
        let values: Vec<V> =
            texts.iter().map(|text| parse(key, text, &source)).collect::<Result<_, ConfigError>>()?;
        let shown: Vec<_> = values.iter().map(Value::show).collect();
        self.resolved.push(Resolved { key, value: Some(format!("[{}]", shown.join(", "))), source });
        Ok(values)
    }

    /// As [`Layers::list`], with at least one value.
    ///
    /// # Errors
    /// As [`Layers::list`]; nothing at all is an error of [`Layers::finish`].
    pub fn required_list<V: Value>(&mut self, key: &'static str) -> Result<Vec<V>, ConfigError> {
        let values = self.list(key)?;
        if values.is_empty() {
            self.missing.push(key);
        }
        Ok(values)
    }

    /// Every setting asked for, as a TOML document that says where each value
    /// came from. Complete when all were asked for.
    ///
    /// # Errors
    /// `UnknownKey` for the first key of the file that is none.
    pub fn document(&self) -> Result<String, ConfigError> {
        self.check_keys()?;
        Ok(source::document(self.command, &self.resolved))
    }

    /// To be called when every setting was asked for; what stands out in the
    /// environment, to be logged.
    ///
    /// # Errors
    /// `UnknownKey` for the first key of the file that nobody asked for,
    /// `Missing` for what is required and was not given.
    pub fn finish(self) -> Result<Vec<String>, ConfigError> {
        self.check_keys()?;
        if !self.missing.is_empty() {
            return Err(ConfigError::Missing(self.missing));
        }
        Ok(self.strange_variables())
    }

    fn check_keys(&self) -> Result<(), ConfigError> {
        let Some(file) = &self.file else { return Ok(()) };
        let unknown = file
            .values
            .iter()
            .filter(|(key, _)| !self.resolved.iter().any(|setting| setting.key == key.as_str()))
            .min_by_key(|(_, (line, _))| *line);
        let Some((key, (line, _))) = unknown else { return Ok(()) };
        Err(ConfigError::UnknownKey {
            path: file.path.clone(),
            line: *line,
            key: key.clone(),
            hint: self.nearest(key),
            command: self.command,
        })
    }

    /// Variables that look like misspelt settings. They are not refused: an
    /// orchestrator may put names of its own below `SHOAL_`.
    fn strange_variables(&self) -> Vec<String> {
        let known = |name: &str| self.resolved.iter().any(|setting| variable(setting.key) == name);
        self.environment
            .keys()
            .filter(|name| !known(name) && !OTHER_VARIABLES.contains(&name.as_str()))
            .filter_map(|name| {
                let near = self.nearest(name.strip_prefix("SHOAL_")?)?;
                Some(format!("environment variable {name} is no setting (did you mean {}?)", variable(near)))
            })
            .collect()
    }

    fn nearest(&self, key: &str) -> Option<&'static str> {
        let key = key.to_lowercase().replace('-', "_");
        self.resolved
            .iter()
            .map(|setting| (setting.key, strsim::jaro_winkler(setting.key, &key)))
            .filter(|(_, likeness)| *likeness >= HINT_LIKENESS_MIN)
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(near, _)| near)
    }

    fn record<V: Value>(&mut self, key: &'static str, value: V, source: Source) -> V {
        self.resolved.push(Resolved { key, value: Some(value.show()), source });
        value
    }

    fn find<V: Value>(&self, key: &'static str) -> Result<Option<(V, Source)>, ConfigError> {
        let Some((texts, source)) = self.raw(key) else { return Ok(None) };
        let text = texts.last().map_or("", String::as_str);
        parse(key, text, &source).map(|value| Some((value, source)))
    }

    /// What the first layer that has the key says.
    fn raw(&self, key: &'static str) -> Option<(Vec<String>, Source)> {
        if let Some(values) = self.flags.get(key) {
            return Some((values.clone(), Source::Flag(flag(key))));
        }
        let name = variable(key);
        if let Some(value) = self.environment.get(&name) {
            return Some((vec![value.clone()], Source::Environment(name)));
        }
        if key == "log_level"
            && let Some(value) = self.environment.get("SHOAL_LOG")
        {
            return Some((vec![value.clone()], Source::Environment("SHOAL_LOG".to_owned())));
        }
        let file = self.file.as_ref()?;
        let (_, values) = file.values.get(key)?;
        Some((values.clone(), Source::File(file.path.clone())))
    }
}

fn parse<V: Value>(key: &'static str, text: &str, source: &Source) -> Result<V, ConfigError> {
    V::parse(text).map_err(|message| ConfigError::Invalid {
        key,
        value: text.to_owned(),
        source_: source.clone(),
        message,
    })
}

impl FileLayer {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let syntax = |message: String| ConfigError::Syntax { path: path.to_owned(), message };
        let table = DeTable::parse(&text).map_err(|error| syntax(error.to_string()))?;
        let mut values = BTreeMap::new();
        for (key, value) in table.get_ref() {
            let line = 1 + text.get(..key.span().start).unwrap_or_default().matches('\n').count();
            let texts = match value.get_ref() {
                DeValue::Array(items) => {
                    items.iter().map(|item| scalar(item.get_ref())).collect::<Option<Vec<_>>>()
                }
                other => scalar(other).map(|text| vec![text]),
            };
            let texts = texts.ok_or_else(|| {
                syntax(format!(
                    "line {line}: `{}` is not a text, number, true, false or a list of them",
                    key.get_ref()
                ))
            })?;
            values.insert(key.get_ref().to_string(), (line, texts));
        }
        Ok(Self { path: path.to_owned(), values })
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => return None,
    })
}

#[cfg(test)]
mod tests;
