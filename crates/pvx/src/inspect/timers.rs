//! POSIX timers (timer_create(2)): /proc/PID/timers.

use std::io::Read;

use procfs::process::Process;
use serde::Serialize;

/// One timer. What it is set to, only the process can know: timer_gettime(2) answers the owner alone.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Timer {
    pub(crate) id: u64,
    /// Its signal, and the value that comes with it.
    pub(crate) signal: u64,
    pub(crate) value: String,
    /// How it tells: `signal/tid.1234`.
    pub(crate) notify: String,
    /// Which clock: a number that may be negative, for a process's or thread's.
    pub(crate) clock: i64,
}

/// All timers of the process. Kernels without CONFIG_CHECKPOINT_RESTORE do not tell.
pub(crate) fn timers(process: &Process) -> Result<Vec<Timer>, String> {
    let mut text = String::new();
    let mut file = process.open_relative("timers").map_err(|error| error.to_string())?;
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Timer> {
    let mut timers: Vec<Timer> = Vec::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once(": ")) {
        let value = value.trim();
        if key == "ID" {
            timers.push(Timer { id: value.parse().unwrap_or_default(), ..Timer::default() });
        }
        let Some(timer) = timers.last_mut() else { continue };
        match key {
            "signal" => {
                let (signal, data) = value.split_once('/').unwrap_or((value, "0"));
                timer.signal = signal.parse().unwrap_or_default();
                timer.value = format!("0x{}", data.trim_start_matches('0'));
            }
            "notify" => value.clone_into(&mut timer.notify),
            "ClockID" => timer.clock = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    timers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_read_one_by_one() {
        let text = "ID: 0\nsignal: 14/00007fff9fb5c3c0\nnotify: signal/pid.2634\nClockID: 1\n\
                    ID: 5\nsignal: 34/0000000000000001\nnotify: thread/tid.7\nClockID: -6\n";
        let timers = parse(text);
        assert_eq!(
            timers[0],
            Timer {
                id: 0,
                signal: 14,
                value: "0x7fff9fb5c3c0".into(),
                notify: "signal/pid.2634".into(),
                clock: 1
            }
        );
        assert_eq!((timers[1].id, timers[1].clock, timers.len()), (5, -6, 2));
    }
}
