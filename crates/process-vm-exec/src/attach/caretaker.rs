//! The thread that attaches to one live process, stays as long as that lasts, and removes everything afterwards.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::birth::{self, Born};
use super::janitor::{Janitor, Line};
use super::place::Place;
use super::quiescence::wait_until_quiescent;
use super::region::Room;
use super::rights::{Status, is_ours, refusal};
use super::settle::settle;
use super::tracer::Tracer;
use super::visit::Visits;
use super::{Attachment, Tracing, bootstrap};
use crate::error::{Error, Result};
use crate::executor::arena::Slot;
use crate::executor::life::Life;
use crate::executor::machine::Host;
use crate::executor::region::Region;
use crate::executor::service::Service;
use crate::executor::setup::Params;
use crate::executor::signature::Key;
use crate::maps;
use crate::name::Engine;
use crate::ptrace::request;
use crate::refusal::{AttachError, Capability};
use crate::signal::with_signals_blocked;
use crate::stat::{Stat, thread_to_stop};
use crate::sync::lock;

/// What to attach to, and how.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// Flags of the clones that make the executor, and the one that shares with the target, or 0.
    pub(super) executors: [i32; 2],
    /// Where its pages are to be; `None`: where there is room.
    pub(super) region: Option<Region>,
    pub(super) engine: Engine,
    pub(super) spin_budget_ns: u64,
}

/// Executors that are traced and not let go yet.
type Newborns = Arc<Mutex<Vec<i32>>>;

/// Attaches, by another thread of the target or at another moment if the first one was a bad one.
pub(super) fn attach(order: Order) -> Result<Attachment> {
    /// Each try holds the process up.
    const MOST_TRIES: u32 = 3;
    /// Threads may end as fast as they are chosen.
    const PATIENCE: Duration = Duration::from_secs(1);
    let order = Arc::new(order);
    let end = Instant::now() + PATIENCE;
    let mut tries = 1;
    loop {
        match try_to_attach(&order) {
            Err(Error::Attach { why: AttachError::ThreadsEnd, .. }) if Instant::now() < end => {}
            // A signal that cannot be blocked has come between.
            Err(Error::Attach { why: AttachError::NoTask, .. }) if tries < MOST_TRIES => tries += 1,
            result => return result,
        }
    }
}

/// Has the process ended, with all its threads? Its number may be another one's then.
fn has_ended(pidfd: &OwnedFd) -> bool {
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&NOW)).is_ok_and(|ready| ready != 0)
}

/// Attaches in a thread of its own, which traces.
fn try_to_attach(order: &Arc<Order>) -> Result<Attachment> {
    /// Longer than all that has a limit of its own.
    const PATIENCE: Duration = Duration::from_secs(20);
    let janitor = Janitor::get()?;
    let number = order.pid.as_raw_pid();
    let (sender, receiver) = sync_channel(1);
    let newborns = Newborns::default();
    let tracer = Arc::<Tracer>::default();
    let work = {
        let (order, newborns, tracer) = (Arc::clone(order), Arc::clone(&newborns), Arc::clone(&tracer));
        move || {
            tracer.begin();
            care(&order, &janitor, &newborns, &sender);
        }
    };
    // A signal for this process is never the caretaker's.
    let caretaker = with_signals_blocked(|| thread::Builder::new().name("pvx-attached".into()).spawn(work))
        .map_err(|error| Error::Host {
        call: "starting the thread of an attached process",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
    })?;
    let result = receiver.recv_timeout(PATIENCE).or_else(|_| {
        // The target keeps them from beginning.
        lock(&newborns).drain(..).for_each(kill);
        receiver.recv_timeout(PATIENCE)
    });
    let Ok(result) = result else {
        // What the caretaker comes to nobody waits for any more; then it takes everything out again.
        return Err(refusal(number, Errno::TIMEDOUT, AttachError::Withheld));
    };
    if result.is_err() {
        let _ = caretaker.join();
        tracer.wait_until_it_traces_nobody();
    }
    result
}

fn care(order: &Order, janitor: &Arc<Janitor>, newborns: &Newborns, reply: &SyncSender<Result<Attachment>>) {
    let line = match janitor.line() {
        Ok(line) => line,
        Err(error) => return drop(reply.send(Err(error))),
    };
    match Session::start(order, newborns, line) {
        Ok((session, attachment)) => {
            // Nobody may want it any more; then its life ends with the attachment.
            drop(reply.send(Ok(attachment)));
            session.care();
        }
        Err(error) => drop(reply.send(Err(error))),
    }
}

/// An attached process, from its caretaker's side.
struct Session<'a> {
    order: &'a Order,
    life: Arc<Life>,
    executor: OwnedFd,
    sharer: Option<OwnedFd>,
    leave: Arc<OwnedFd>,
    visits: Arc<Visits>,
    /// Given back when all is removed.
    line: Line,
}

impl<'a> Session<'a> {
    fn start(order: &'a Order, newborns: &Newborns, line: Line) -> Result<(Self, Attachment)> {
        // Not the process itself: if its main thread has ended, that has no memory.
        let (room, place) = by_thread_of(order, |thread, status| look(order, thread, status))?;
        // Where threads come and go, the one that was looked at may have ended meanwhile.
        by_thread_of(order, |thread, status| {
            Self::start_by(thread, status, order, (room, place), newborns, line)
        })
    }

    fn start_by(
        thread: i32,
        status: &Status,
        order: &'a Order,
        (room, place): (Room, Place),
        newborns: &Newborns,
        line: Line,
    ) -> Result<(Self, Attachment)> {
        let pid = order.pid.as_raw_pid();
        let tracing = if status.is_under_seccomp() { Tracing::GoesOn } else { Tracing::Ends };
        let keys = [Key::new()?, Key::new()?];
        let options = seize(pid, thread, status, tracing)?;
        // From here on the number stays its own.
        if has_ended(&order.pidfd) {
            return Err(refusal(pid, Errno::SRCH, AttachError::Ended));
        }
        line.added().options.store(options, Ordering::Relaxed);
        let born = birth::give_birth(pid, thread, &place, order.executors);
        let settled = born.map_err(|errno| refusal(pid, errno, why_not_born(errno))).and_then(|born| {
            let parent = 0;
            let params = Params { engine: order.engine, spin_budget_ns: order.spin_budget_ns, parent };
            lock(newborns).extend(std::iter::once(born.executor).chain(born.sharer));
            let settled =
                settle(&born, (&place, room), line.added(), params, keys, tracing).map(|slot| (born, slot));
            lock(newborns).clear();
            settled
        });
        // After an error somebody may still be there.
        let (born, slot) = settled?;
        let fs_base = (thread == pid).then_some(born.fs_base);
        let added = line.added();
        let cleared = place.clear().map_err(|_| refusal(pid, Errno::SRCH, AttachError::Ended));
        cleared
            .and_then(|()| Self::of(order, line, &born, (Arc::new(slot), keys), (fs_base, tracing)))
            .inspect_err(|_| _ = added.remove())
    }

    fn of(
        order: &'a Order,
        line: Line,
        born: &Born,
        (slot, [key, sharers_key]): (Arc<Slot>, [Key; 2]),
        (fs_base, tracing): (Option<u64>, Tracing),
    ) -> Result<(Self, Attachment)> {
        let pid = Pid::from_raw(born.executor).ok_or(Error::Dead)?;
        let executor = open(pid)?;
        let leave = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(Error::host("eventfd"))?);
        let life = Arc::new(Life::of_guest_in(slot, Arc::clone(&leave)));
        life.begin(pid);
        let host = Host::new(order.spin_budget_ns);
        let service = Service::new(Arc::clone(&life), host, key);
        let sharer = match born.sharer.and_then(Pid::from_raw) {
            Some(pid) => Some((Service::sharer(Arc::clone(&life), host, sharers_key), open(pid)?)),
            None => None,
        };
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(|_| Error::TooMany("open descriptors"));
        let visits = Arc::new(Visits::new(line.added()));
        let session = Self {
            order,
            life,
            executor: clone(&executor)?,
            sharer: sharer.as_ref().map(|(_, pidfd)| clone(pidfd)).transpose()?,
            leave,
            visits: Arc::clone(&visits),
            line,
        };
        let attachment = Attachment { pid: order.pid, service, executor, sharer, fs_base, tracing, visits };
        Ok((session, attachment))
    }

    /// Waits until the target, an executor or the supervisor's interest ends, and removes what is left.
    fn care(self) {
        let fds = [&self.order.pidfd, &self.executor, &self.leave].into_iter().chain(&self.sharer);
        let mut waits: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        while poll(&mut waits, None) == Err(Errno::INTR) {}
        // The removal needs a descriptor, and there may be no other.
        drop(self.executor);
        self.visits.end(&self.life, self.line);
    }
}

/// Does something by a thread of the process that can be stopped.
fn by_thread_of<T>(order: &Order, work: impl FnOnce(i32, &Status) -> Result<T>) -> Result<T> {
    let pid = order.pid.as_raw_pid();
    let thread = thread_to_stop(pid).unwrap_or(pid);
    let result = Status::of_thread(pid, thread).and_then(|status| {
        status.require_possible()?;
        work(thread, &status)
    });
    result.map_err(|error| {
        // Its memory, its rights or its state may be the first to tell.
        if Stat::has_ended(thread) && !has_ended(&order.pidfd) {
            refusal(pid, Errno::SRCH, AttachError::ThreadsEnd)
        } else {
            error
        }
    })
}

/// Where everything is to be, as a thread sees the memory.
fn look(order: &Order, thread: i32, status: &Status) -> Result<(Room, Place)> {
    let pid = order.pid.as_raw_pid();
    let maps = maps::of_task(thread).map_err(|error| match error.errno() {
        Errno::ACCESS | Errno::PERM => status.not_permitted(),
        _ => error,
    })?;
    let room = Room::find(order.pid, thread, &maps, order.region)?;
    let place = find_place(pid, thread, status)?;
    if place.is_left_over {
        wait_until_quiescent(pid, place.range()).map_err(|errno| refusal(pid, errno, why_not_born(errno)))?;
    }
    Ok((room, place))
}

fn find_place(pid: i32, thread: i32, status: &Status) -> Result<Place> {
    /// In the middle of execve(2), which lets a parent that has spawned it go on early, a process has hardly any text.
    const PATIENCE: Duration = Duration::from_millis(50);
    const NAP: Duration = Duration::from_millis(1);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let path = format!("/proc/{thread}/mem");
        let memory = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(
            |errno| match errno {
                Errno::ACCESS | Errno::PERM => status.not_permitted(),
                errno => refusal(pid, errno, AttachError::Memory),
            },
        )?;
        match Place::find(memory.into(), thread)? {
            Some(place) => return Ok(place),
            None if Instant::now() < deadline => thread::sleep(NAP),
            None => {
                return Err(refusal(pid, Errno::NOMEM, AttachError::NoPlace(bootstrap::len())));
            }
        }
    }
}

fn kill(pid: i32) {
    // SAFETY: kill only sends a signal. Our thread traces the process, so the number is still its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

fn open(pid: Pid) -> Result<OwnedFd> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(Error::host("pidfd_open of the executor"))
}

/// Begins to trace `tid`, and returns the options that did it.
fn seize(pid: i32, tid: i32, status: &Status, tracing: Tracing) -> Result<u64> {
    const SUSPEND_SECCOMP: u64 = 1 << 21;
    const SYSGOOD: u64 = libc::PTRACE_O_TRACESYSGOOD.unsigned_abs() as u64;
    let options = match tracing {
        Tracing::GoesOn => SYSGOOD | SUSPEND_SECCOMP,
        Tracing::Ends => SYSGOOD,
    };
    match request(libc::PTRACE_SEIZE, tid, 0, usize::try_from(options).expect("64-bit")) {
        Ok(_) => Ok(options),
        Err(Errno::PERM) if tracing == Tracing::GoesOn && !is_ours(Capability::SysAdmin) => {
            Err(refusal(pid, Errno::PERM, AttachError::Seccomp))
        }
        Err(errno @ Errno::INVAL) if tracing == Tracing::GoesOn => {
            Err(refusal(pid, errno, AttachError::SeccompStays))
        }
        Err(Errno::PERM) => Err(status.not_permitted()),
        Err(errno) => Err(refusal(pid, errno, AttachError::Ended)),
    }
}

fn why_not_born(errno: Errno) -> AttachError {
    match errno {
        Errno::BUSY => AttachError::DoesNotStop,
        Errno::NOEXEC => AttachError::Code32,
        Errno::AGAIN | Errno::NOMEM => AttachError::TooManyTasks,
        Errno::SRCH => AttachError::Ended,
        _ => AttachError::NoTask,
    }
}

/// The process of a pidfd, in our namespace (pidfd_open(2): /proc/PID/fdinfo/FD).
pub(super) fn pid_of(pidfd: BorrowedFd<'_>) -> Result<Pid> {
    use std::os::fd::AsRawFd;
    let info =
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).map_err(|error| {
            Error::Host {
                call: "reading /proc/self/fdinfo (is /proc mounted?)",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            }
        })?;
    let field = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let Some(number) = field.and_then(|number| number.trim().parse::<i32>().ok()) else {
        return Err(Error::Host { call: "attaching to a descriptor that is no pidfd", errno: Errno::BADF });
    };
    match Pid::from_raw(number.max(0)) {
        Some(pid) => Ok(pid),
        None => Err(refusal(number, Errno::SRCH, AttachError::NoNumber)),
    }
}
