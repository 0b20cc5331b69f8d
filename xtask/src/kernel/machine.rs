//! The machine: QEMU with two serial ports. The first is the kernel's console, the second is where `init.sh` and the
//! tests write.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use super::{
    console,
    image::Image,
    programs::Planned,
    results::{Ended, Program},
};
use crate::step;

/// A plain kernel is up in two seconds; this is for a machine that has other things to do.
const BOOT: Duration = Duration::from_secs(60);
const POWER_OFF: Duration = Duration::from_secs(20);
/// For lines that are still on their way when the machine is off.
const LEFT_OVER: Duration = Duration::from_secs(2);
/// What a program may exceed its time by, as the guest's clock has it, before the host takes the guest for hung.
const GRACE: Duration = Duration::from_secs(20);

/// What the guest's clocks and timers follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Time {
    /// The host's time.
    Host,
    /// The guest's instructions, one ns each: its time stamp counter counts them. For one processor only.
    Instructions,
}

/// A machine that is ready to be switched on.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) image: Image,
    pub(super) initramfs: PathBuf,
    pub(super) cpus: u8,
    pub(super) time: Time,
}

/// What a boot has shown.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) programs: Vec<Program>,
    /// What the kernel complained about.
    pub(super) complaints: Vec<String>,
    /// Why not all of the plan was done, if so.
    pub(super) cut_short: Option<String>,
    pub(super) seconds: f64,
    /// Both serial ports, in the order of arrival.
    pub(super) log: PathBuf,
}

enum Event {
    Console(String),
    Tests(String),
    Off,
}

/// A running QEMU, which does not outlive this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Machine {
    /// Boots and lets the guest do its plan. Ends in any case, with what there is till then.
    pub(super) fn test(&self, plan: &[Planned], place: &Path) -> Result<Finished> {
        let started = Instant::now();
        let log_path = place.join("console.log");
        let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let bar = step::progress(&format!("{} kernel, {} CPU(s)", self.image.name, self.cpus));
        let sockets = tempfile::tempdir()?;
        let socket = sockets.path().join("tests");
        let listener = UnixListener::bind(&socket)?;
        let (sender, events) = mpsc::channel();

        let mut qemu = self.qemu("test");
        qemu.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        qemu.args([
            "-chardev",
            &format!("socket,id=tests,path={}", socket.display()),
            "-serial",
            "chardev:tests",
        ]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut running = Running(qemu.spawn().context("cannot start QEMU")?);
        let console = running.0.stdout.take().expect("it is a pipe");
        let console_sender = sender.clone();
        thread::spawn(move || {
            send_lines(console, &console_sender, Event::Console);
            console_sender.send(Event::Off).ok();
        });
        thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                send_lines(stream, &sender, Event::Tests);
            }
        });

        let mut session = Session {
            slowness: self.image.config.slowness(),
            log,
            bar,
            started,
            programs: Vec::new(),
            complaints: Vec::new(),
            done: false,
        };
        let cut_short = session.follow(plan, &events)?;
        session.bar.finish_and_clear();
        Ok(Finished {
            programs: session.programs,
            complaints: session.complaints,
            cut_short,
            seconds: started.elapsed().as_secs_f64(),
            log: log_path,
        })
    }

    /// Boots to a shell on this terminal.
    pub(super) fn shell(&self) -> Result<()> {
        let mut qemu = self.qemu("shell");
        qemu.args(["-serial", "mon:stdio", "-serial", "null"]);
        let status = qemu.status().context("cannot start QEMU")?;
        if !status.success() {
            bail!("QEMU: {status}");
        }
        Ok(())
    }

    fn qemu(&self, mode: &str) -> Command {
        // A machine must not outlive an xtask that is killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        // QEMU before 9.1 executes iretq and far returns of user code with the kernel's rights, which SMAP refuses: the
        // kernel then reports an oops for what the library's engines do all the time.
        qemu.args(["-machine", "pc", "-cpu", "max,-smap"]);
        qemu.args(match self.time {
            Time::Host => &["-accel", "tcg,thread=multi"][..],
            // Without sleep=off, an idle guest would wait until the host's time has caught up.
            Time::Instructions => &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"],
        });
        qemu.args(["-smp", &self.cpus.to_string()]);
        qemu.args(["-m", &format!("{}M", self.image.config.memory_mib())]);
        qemu.args(["-display", "none", "-nodefaults", "-no-reboot"]);
        qemu.arg("-kernel").arg(&self.image.path).arg("-initrd").arg(&self.initramfs);
        // After an oops nothing can be relied on. What the kernel does not know becomes the environment of init.sh.
        let slowness = self.image.config.slowness();
        let mut append =
            format!("console=ttyS0 loglevel=6 oops=panic panic=-1 PVX_MODE={mode} PVX_SLOWNESS={slowness}");
        if self.time == Time::Instructions {
            // How many page tables a process has depends on its addresses.
            append.push_str(" norandmaps");
        }
        qemu.args(["-append", &append]);
        qemu
    }
}

/// The host's side of a boot.
struct Session {
    slowness: u32,
    log: File,
    bar: ProgressBar,
    started: Instant,
    programs: Vec<Program>,
    complaints: Vec<String>,
    done: bool,
}

impl Session {
    /// Returns why the plan was not done to its end, if so.
    fn follow(&mut self, plan: &[Planned], events: &Receiver<Event>) -> Result<Option<String>> {
        let mut plan = plan.iter();
        let mut waiting_for = "the kernel to boot".to_owned();
        let mut deadline = Instant::now() + BOOT * self.slowness;
        let mut is_off = false;
        while !(is_off && self.done) {
            let event = match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => event,
                Err(_) if is_off => {
                    return Ok(Some(format!("the machine went off while waiting for {waiting_for}")));
                }
                Err(_) => return Ok(Some(format!("HUNG: waited too long for {waiting_for}"))),
            };
            let line = match event {
                Event::Off => {
                    is_off = true;
                    deadline = Instant::now() + LEFT_OVER;
                    continue;
                }
                Event::Console(line) => {
                    self.note(&line)?;
                    self.complaints.extend(console::complaint(&line).map(|line| self.with_program(line)));
                    continue;
                }
                Event::Tests(line) => line,
            };
            self.note(&line)?;
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("@begin", name) => {
                    let limit = plan.next().map_or(Duration::ZERO, |planned| planned.limit);
                    deadline = Instant::now() + limit + GRACE;
                    name.clone_into(&mut waiting_for);
                    self.bar.set_message(name.to_owned());
                    if self.bar.is_hidden() {
                        eprintln!("{}: {name}", self.bar.prefix());
                    }
                    self.programs.push(Program::begin(name));
                }
                ("@end", status) => {
                    deadline = Instant::now() + GRACE;
                    let status = status.parse().context("the guest reports nonsense")?;
                    self.programs.last_mut().context("a program that never began")?.end(Ended::With(status));
                }
                ("@ready", _) => deadline = Instant::now() + GRACE,
                ("@done", _) => {
                    self.done = true;
                    "the machine to power off".clone_into(&mut waiting_for);
                    deadline = Instant::now() + POWER_OFF * self.slowness;
                }
                _ => {
                    if let Some(program) = self.programs.last_mut() {
                        program.say(&line);
                    }
                }
            }
        }
        Ok(None)
    }

    fn note(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.log, "{:8.3} {line}", self.started.elapsed().as_secs_f64())?)
    }

    fn with_program(&self, complaint: &str) -> String {
        let program = self.programs.last().map_or("while booting", |program| &program.name);
        format!("{program}: {complaint}")
    }
}

fn send_lines(from: impl Read, to: &Sender<Event>, event: fn(String) -> Event) {
    for line in BufReader::new(from).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        if to.send(event(line)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a boot with these events, and how many programs it has had.
    fn follow(events: Vec<Event>) -> (Option<String>, usize) {
        let (sender, receiver) = mpsc::channel();
        events.into_iter().for_each(|event| sender.send(event).expect("a receiver"));
        let mut session = Session {
            slowness: 1,
            log: tempfile::tempfile().expect("a file"),
            bar: ProgressBar::hidden(),
            started: Instant::now(),
            programs: Vec::new(),
            complaints: Vec::new(),
            done: false,
        };
        let cut_short = session.follow(&[], &receiver).expect("no error");
        (cut_short, session.programs.len())
    }

    fn tests(line: &str) -> Event {
        Event::Tests(line.to_owned())
    }

    #[test]
    fn lines_that_arrive_after_the_console_has_ended_count() {
        let events = vec![tests("@ready"), Event::Off, tests("@begin a"), tests("@end 0"), tests("@done")];
        assert_eq!(follow(events), (None, 1));
    }

    #[test]
    fn a_machine_that_goes_off_early_is_found_out() {
        let (cut_short, _) = follow(vec![tests("@ready"), tests("@begin a"), Event::Off]);
        assert_eq!(cut_short.as_deref(), Some("the machine went off while waiting for a"));
    }
}
