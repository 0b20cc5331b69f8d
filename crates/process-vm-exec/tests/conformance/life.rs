//! From creation to the end: what a guest has, what it leaves behind, and what it survives.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader},
    process::{self, Stdio},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{AddressSpace, Context, Engine, Exit, Mapping, SignalSet};

use crate::common::{
    CODE, Guest, NR, PAGE, READ, STACK_TOP, alone, call_loop, claims, kill, pid_of, space, this_claim,
};

/// Set in the supervisor that is to be killed.
const VICTIM: &str = "PVX_CONFORMANCE_VICTIM";

fn create(engine: Engine) -> AddressSpace {
    AddressSpace::builder().engine(engine).create().expect("an address space")
}

/// The tasks of a process.
fn tasks(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The tasks that run guest code: all but the first, which serves the supervisor and never does.
fn executors(pid: i32) -> Vec<i32> {
    tasks(pid).into_iter().filter(|&tid| tid != pid).collect()
}

/// No task that runs guest code has a file open.
pub(crate) fn assert_no_descriptors(pid: i32) {
    assert!(!executors(pid).is_empty(), "no task has run guest code");
    for tid in executors(pid) {
        let fds = fs::read_dir(format!("/proc/{pid}/task/{tid}/fd")).expect("the task");
        let open: Vec<_> = fds.map(|fd| fd.map(|fd| fs::read_link(fd.path()))).collect();
        assert!(open.is_empty(), "task {tid} of {pid} has {open:?}");
    }
}

/// The value of a line of /proc/PID/task/TID/status.
fn status(pid: i32, tid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).expect("the task");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.expect("the line").trim().to_owned()
}

/// All processes whose parent is this one, zombies included.
fn children() -> BTreeSet<i32> {
    let me = process::id().to_string();
    let all = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_mine = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in parentheses: state, parent.
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(me.as_str())
    };
    all.filter(is_mine).collect()
}

/// What a process may leak.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Possessions {
    children: usize,
    threads: usize,
    descriptors: usize,
    mappings: usize,
}

impl Possessions {
    fn now() -> Self {
        let entries = |path| fs::read_dir(path).expect("/proc").count();
        Self {
            children: children().len(),
            threads: entries("/proc/self/task"),
            descriptors: entries("/proc/self/fd"),
            mappings: fs::read_to_string("/proc/self/maps").expect("maps").lines().count(),
        }
    }

    /// The allocator may have mapped some more, but not one for each of hundreds of spaces.
    fn is_within(&self, before: &Self) -> bool {
        self.children <= before.children
            && self.threads <= before.threads
            && self.descriptors <= before.descriptors
            && self.mappings <= before.mappings + 16
    }
}

/// Waits a little for things to be cleaned up.
fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "still not: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn check_nothing_is_left(rounds: usize, mut round: impl FnMut()) {
    for _ in 0..5 {
        round();
    }
    thread::sleep(Duration::from_millis(500));
    let before = Possessions::now();
    for _ in 0..rounds {
        round();
    }
    let mut after = Possessions::now();
    let end = Instant::now() + Duration::from_secs(10);
    while !after.is_within(&before) && Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
        after = Possessions::now();
    }
    assert!(after.is_within(&before), "after {rounds} rounds {after:?}, before {before:?}");
}

claims! {
    fn ten_thousand_spaces_leave_nothing_behind(engine) {
        let rounds = if engine == Engine::Trap { 10_000 } else { 500 };
        alone(engine, module_path!(), "ten_thousand_spaces_leave_nothing_behind", || {
            check_nothing_is_left(rounds, || drop(create(engine)));
        });
    }

    fn spaces_that_ran_leave_nothing_behind(engine) {
        alone(engine, module_path!(), "spaces_that_ran_leave_nothing_behind", || {
            check_nothing_is_left(300, || {
                let mut guest = Guest::new(engine, call_loop);
                let mut other = guest.another(1);
                guest.call();
                other.call();
                let child = guest.space.fork().expect("a fork");
                let mut ctx = guest.ctx.try_clone().expect("a copy");
                assert!(matches!(child.run(&mut ctx, &SignalSet::all()), Ok(Exit::Syscall)));
            });
        });
    }

    fn spaces_that_were_killed_leave_nothing_behind(engine) {
        alone(engine, module_path!(), "spaces_that_were_killed_leave_nothing_behind", || {
            check_nothing_is_left(200, || {
                let mut guest = Guest::new(engine, call_loop);
                guest.call();
                kill(pid_of(&guest.space), libc::SIGKILL);
            });
        });
    }

    fn contexts_leave_nothing_behind(engine) {
        alone(engine, module_path!(), "contexts_leave_nothing_behind", || {
            let first = Guest::new(engine, call_loop);
            check_nothing_is_left(500, || {
                first.another(1).call();
            });
        });
    }

    fn a_dropped_space_takes_its_task_with_it(engine) {
        let mut guest = Guest::new(engine, call_loop);
        guest.call();
        let pid = pid_of(&guest.space);
        assert!(!tasks(pid).is_empty());
        drop(guest);
        soon("the guest's tasks are gone", || tasks(pid).is_empty());
    }

    /// They are for the supervisor's own threads, with whose stacks and locks its handlers may run.
    fn threads_of_the_library_take_no_signals(engine) {
        alone(engine, module_path!(), "threads_of_the_library_take_no_signals", || {
            let mut guest = Guest::new(engine, call_loop);
            for _ in 0..10 {
                guest.call();
            }
            let status = |tid: i32| fs::read_to_string(format!("/proc/self/task/{tid}/status")).expect("its status");
            let ours: Vec<_> = tasks(std::process::id().cast_signed()).into_iter().map(status).collect();
            let ours: Vec<_> = ours.iter().filter(|status| status.starts_with("Name:\tpvx-")).collect();
            assert!(ours.len() >= 2, "{ours:?}");
            // All but SIGKILL and SIGSTOP, and the two that C libraries keep for themselves (nptl(7)).
            for status in ours {
                let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("its mask").trim();
                let blocked = u64::from_str_radix(blocked, 16).expect("a mask");
                let not = [libc::SIGKILL, libc::SIGSTOP, 32, 33].into_iter().fold(!blocked, |not, signal| not & !(1 << (signal - 1)));
                assert_eq!(not, 0, "{status}");
            }
        });
    }

    fn a_thousand_spaces_are_alive_at_once(engine) {
        alone(engine, module_path!(), "a_thousand_spaces_are_alive_at_once", || {
            let code = crate::common::asm(call_loop);
            let mut guests: Vec<_> = (0..1000)
                .map(|_| (space(engine, &code), Context::new(CODE, STACK_TOP)))
                .collect();
            for _ in 0..2 {
                for (number, (space, ctx)) in guests.iter_mut().enumerate() {
                    match space.run(ctx, &SignalSet::all()) {
                        Ok(Exit::Syscall) => assert_eq!(ctx.syscall().nr, u64::from(NR)),
                        other => panic!("space {number}: {other:?}"),
                    }
                }
            }
            let pids: BTreeSet<_> = guests.iter().map(|(space, _)| pid_of(space)).collect();
            assert_eq!(pids.len(), 1000);
        });
    }

    fn an_idle_guest_uses_no_processor_time(engine) {
        let mut guest = Guest::new(engine, call_loop);
        guest.call();
        let pid = pid_of(&guest.space);
        assert!(!executors(pid).is_empty());
        // Time on a processor, time of waiting for one, and how often it got one (Documentation/scheduler/sched-stats.rst).
        let used = || -> Vec<String> {
            let stat = |tid| fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).expect("the task's times");
            tasks(pid).into_iter().map(stat).collect()
        };
        // One that has just been made may sleep in the kernel before it is where it waits.
        soon("all tasks sleep", || {
            let before = used();
            thread::sleep(Duration::from_millis(50));
            used() == before && tasks(pid).iter().all(|&tid| !status(pid, tid, "State").starts_with('R'))
        });
        let before = used();
        thread::sleep(Duration::from_millis(500));
        assert_eq!(used(), before, "an idle guest ran");
        // The native engine runs contexts in its caller: nothing shows there, whether they run or not.
        if engine != Engine::Native {
            guest.call();
            assert_ne!(used(), before, "what shows that it ran shows nothing");
        }
    }

    fn the_guest_dies_with_its_supervisor(engine) {
        if env::var_os(VICTIM).is_some() {
            let mut guest = Guest::new(engine, call_loop);
            guest.call();
            let tids: Vec<_> = tasks(pid_of(&guest.space)).iter().map(ToString::to_string).collect();
            println!("GUEST {} {}", pid_of(&guest.space), tids.join(" "));
            loop {
                guest.call();
            }
        }
        let mut victim = this_claim(engine, module_path!(), "the_guest_dies_with_its_supervisor")
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test runs itself");
        let output = BufReader::new(victim.stdout.take().expect("its output"));
        let line = output.lines().map_while(Result::ok).find_map(|line| {
            line.find("GUEST ").map(|at| line[at + 6..].to_owned())
        });
        let line = line.expect("the victim says which guest it has");
        let ids: Vec<i32> = line.split_whitespace().map(|id| id.parse().expect("a pid")).collect();
        thread::sleep(Duration::from_millis(20));
        assert!(ids.iter().all(|id| fs::metadata(format!("/proc/{id}")).is_ok()));
        victim.kill().expect("SIGKILL");
        victim.wait().expect("the victim");
        let dead = |id: &i32| {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z") || rest.starts_with(" X"))
        };
        soon("the guest is gone", || ids.iter().all(dead));
    }

    fn a_guest_survives_the_thread_that_made_it(engine) {
        let mut guest = thread::spawn(move || {
            let mut guest = Guest::new(engine, call_loop);
            guest.call();
            guest
        })
        .join()
        .expect("a thread");
        thread::sleep(Duration::from_millis(20));
        for _ in 0..10 {
            guest.call();
        }
    }

    fn a_guest_has_no_descriptors(engine) {
        let mut guest = Guest::new(engine, call_loop);
        guest.call();
        guest.another(1).call();
        assert_no_descriptors(pid_of(&guest.space));
    }

    fn a_guest_has_no_capabilities_and_a_filter(engine) {
        let mut guest = Guest::new(engine, call_loop);
        guest.call();
        let pid = pid_of(&guest.space);
        assert!(!executors(pid).is_empty());
        for tid in executors(pid) {
            for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
                assert_eq!(u64::from_str_radix(&status(pid, tid, set), 16), Ok(0), "{set} of task {tid}");
            }
            assert_eq!(status(pid, tid, "NoNewPrivs"), "1", "task {tid}");
            assert_eq!(status(pid, tid, "Seccomp"), "2", "task {tid}");
        }
    }

    fn a_guest_has_no_memory_of_the_supervisor(engine) {
        let mut guest = Guest::new(engine, call_loop);
        guest.call();
        let maps = fs::read_to_string(format!("/proc/{}/maps", pid_of(&guest.space))).expect("maps");
        assert_ne!(maps.lines().count(), 0, "nothing is mapped");
        let mine = fs::read_link("/proc/self/exe").expect("this program");
        for line in maps.lines() {
            assert!(!line.contains(mine.to_str().expect("UTF-8")), "{line}");
            assert!(!line.contains("[heap]") && !line.contains("[stack]") && !line.contains(".so"), "{line}");
        }
    }

    fn guests_do_not_disturb_children_of_the_supervisor(engine) {
        alone(engine, module_path!(), "guests_do_not_disturb_children_of_the_supervisor", || {
            let mut child = process::Command::new("true").spawn().expect("a child");
            let mut guest = Guest::new(engine, call_loop);
            guest.call();
            kill(pid_of(&guest.space), libc::SIGKILL);
            assert!(matches!(guest.run(), Exit::Died(_) | Exit::Syscall));
            drop(guest);
            thread::sleep(Duration::from_millis(50));
            assert!(child.wait().expect("its status is still there").success());
        });
    }

    /// What runs there at its end, destructors and handlers, is not about its parent's spaces.
    fn a_process_that_the_supervisor_forks_ends_nothing_of_it(engine) {
        if matches!(engine, Engine::Ptrace | Engine::Native) {
            // Their tasks are a thread's, which has not been forked.
            return;
        }
        let mut guest = Guest::new(engine, call_loop);
        guest.call();
        let other = Guest::new(engine, call_loop);
        let interrupter = guest.ctx.interrupter();
        // SAFETY: the child uses what is its own copy, and memory of the C library, which sees to that, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            interrupter.interrupt();
            other.space.kill();
            drop((guest, other));
            // SAFETY: ends this process.
            unsafe { libc::_exit(7) }
        }
        let mut status = 0;
        // SAFETY: the status may be written.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
        for mut guest in [guest, other] {
            guest.ctx.set_return(Ok(0));
            guest.call();
            guest.space.map(Mapping::anonymous(PAGE, READ)).expect("it lives");
        }
    }
}
