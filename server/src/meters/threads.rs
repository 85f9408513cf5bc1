//! CPU time of the threads of the process, by what they do. The sum for the process hides the one that is at its end:
//! the node actor and the bus have one thread each, however many cores there are.

#[cfg(target_os = "linux")]
use procfs::process::Process;

/// What threads do.
pub const THREADS: [&str; 4] = ["node", "bus", "worker", "outside"];

/// A thread of the process.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread(i32);

#[cfg(target_os = "linux")]
impl Thread {
    /// The one that asks.
    pub fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }
}

/// What all threads of each kind have used, in seconds; `node` is the one of the node actor. Of others nothing is said:
/// they may end, and what they have used would be gone. Nothing at all where /proc cannot be read.
#[cfg(target_os = "linux")]
pub fn cpu_seconds(node: Thread) -> Option<[(&'static str, f64); THREADS.len()]> {
    let ticks_per_second = procfs::ticks_per_second() as f64;
    let mut used = THREADS.map(|thread| (thread, 0.0));
    for task in Process::myself().ok()?.tasks().ok()? {
        // One that has just ended cannot be read.
        let Ok(stat) = task.and_then(|task| task.stat()) else {
            continue;
        };
        let does = match stat.comm.as_str() {
            _ if stat.pid == node.0 => "node",
            // The kernel keeps the first 15 bytes.
            name if name.starts_with("actix-rt|") => "worker",
            name => name,
        };
        for (thread, seconds) in &mut used {
            if *thread == does {
                *seconds += (stat.utime + stat.stime) as f64 / ticks_per_second;
            }
        }
    }
    Some(used)
}
