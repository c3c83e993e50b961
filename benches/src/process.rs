//! What the kernel counts for a process, and allows it: CPU time, memory, open
//! files. Linux only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::report::say;

/// Ticks of a second in `/proc/<pid>/stat`: 100 on every Linux that user space
/// sees.
const TICKS_PER_SECOND: f64 = 100.0;
/// By how much the difference of two [`cpu_seconds`] may be too much: user and
/// system time are each rounded down to a tick.
const ROUNDED_S: f64 = 2.0 / TICKS_PER_SECOND;
/// How often [`MemoryWatch`] looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// Files that a process may have open besides its connections.
const FILES_SPARE: u64 = 500;

/// Threads that can run at once: the cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// User and system CPU seconds of a process and its ended threads so far;
/// 0 for a process that is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    // The command in parentheses may hold blanks: fields count from behind it.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0.0 };
    let ticks = |index: usize| -> f64 {
        fields.split_ascii_whitespace().nth(index).and_then(|field| field.parse().ok()).unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// CPU time of a process so far: of each of its threads to the nanosecond, and in
/// all, with the threads that have ended, to the tick.
#[derive(Clone, Debug, Default)]
pub struct CpuTime {
    /// Nanoseconds by thread.
    threads: BTreeMap<u32, u64>,
    whole_s: f64,
}

impl CpuTime {
    /// Of this process, now; nothing of one that is gone.
    pub fn of(pid: u32) -> Self {
        let mut threads = BTreeMap::new();
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Self::default() };
        for task in tasks.flatten() {
            let thread = task.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let times = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let nanos = times.split_ascii_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok());
            threads.extend(thread.zip(nanos));
        }
        Self { threads, whole_s: cpu_seconds(pid) }
    }

    /// CPU seconds since an earlier moment of the same process.
    pub fn since(&self, earlier: &Self) -> f64 {
        let whole_s = self.whole_s - earlier.whole_s;
        if self.threads.is_empty() {
            return whole_s;
        }
        let nanos: u64 = self
            .threads
            .iter()
            .map(|(thread, now)| {
                // More than now was of another thread, whose number this one got.
                let before = earlier.threads.get(thread).copied().filter(|before| before <= now);
                now - before.unwrap_or(0)
            })
            .sum();
        // What ended meanwhile is in the whole alone.
        (nanos as f64 / 1e9).max(whole_s - ROUNDED_S)
    }
}

/// Lets this process, and those that it starts from now on, have so many
/// connections open; says where that cannot be.
pub fn open_many_files(connections: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = connections + FILES_SPARE;
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
    let done = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
    if done.is_err() || raised < needed {
        say(format!("only {raised} files may be open here, and {needed} are needed: see ulimit -n"));
    }
}

/// Bytes of memory that a process holds now; 0 for one that is gone.
pub fn resident_bytes(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:") * 1024
}

/// The most bytes of memory that a process held since it began, or since
/// [`reset_peak`].
pub fn peak_bytes(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:") * 1024
}

/// Starts [`peak_bytes`] anew.
///
/// # Errors
/// When the process is gone or belongs to somebody else.
pub fn reset_peak(pid: u32) -> std::io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

fn status_kib(pid: u32, key: &str) -> u64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse().ok())
        .unwrap_or(0)
}

/// A process and all its descendants, as they are now.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = BTreeSet::from([pid]);
    let mut open = vec![pid];
    while let Some(parent) = open.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
                if found.insert(child) {
                    open.push(child);
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Watches the memory that a set of processes holds together, until it is
/// asked for the most that it saw.
pub struct MemoryWatch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    /// Begins to watch; pages that processes share count once for each.
    pub fn start(pids: Vec<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, peak) = (Arc::clone(&stop), Arc::clone(&peak));
            move || {
                loop {
                    let now: u64 = pids.iter().copied().map(resident_bytes).sum();
                    peak.fetch_max(now, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::park_timeout(WATCH_INTERVAL);
                }
            }
        });
        Self { stop, peak, thread: Some(thread) }
    }

    /// Ends the watch; the most bytes that were held at one moment.
    pub fn finish(mut self) -> u64 {
        self.end();
        self.peak.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_cpu_time() {
        let own = std::process::id();
        let mut sum = 0_u64;
        while cpu_seconds(own) == 0.0 {
            sum = sum.wrapping_add((0..100_000_u64).sum());
        }
        assert!(resident_bytes(own) > 0, "{sum}");
        assert!(MemoryWatch::start(vec![own]).finish() > 0);
        assert!(family(own).contains(&own));
        assert!(CpuTime::of(own).since(&CpuTime::default()) > 0.0);
    }

    #[test]
    fn cpu_time_counts_threads_that_began_and_those_that_ended() {
        let at = |threads: &[(u32, u64)], whole_s: f64| CpuTime {
            threads: threads.iter().copied().collect(),
            whole_s,
        };
        let earlier = at(&[(1, 5_000_000), (2, 9_000_000)], 1.0);
        // The second ended, and a new one got its number; the third is new, too.
        let now = at(&[(1, 7_000_000), (2, 1_000_000), (3, 500_000)], 1.0);
        assert_eq!(now.since(&earlier), 0.0035);
        // Far more was taken than the one that is left says.
        let ended = at(&[(1, 7_000_000)], 1.5).since(&earlier);
        assert!((ended - 0.48).abs() < 1e-9, "{ended}");
        // A kernel that does not count by thread.
        assert_eq!(at(&[], 1.5).since(&at(&[], 1.0)), 0.5);
    }
}
