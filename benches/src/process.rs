//! What the kernel counts for a process: CPU seconds and memory. Linux only.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Ticks of a second in `/proc/<pid>/stat`: 100 on every Linux that user space
/// sees.
const TICKS_PER_SECOND: f64 = 100.0;
/// How often [`MemoryWatch`] looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

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
    }
}
