//! System calls in a live process: whose memory, descriptors, directory and handlers they mean.

use std::{
    env, fs,
    io::Read,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    thread,
};

use process_vm_exec::{
    Call, DescriptorError, Errno, Error, LiveProcess, LiveProcessBuilder, Mapping, Owner, Protection,
    Returned, Sysno,
};

use crate::{
    common::{Execute as _, attached, attached_with, scratch, turn},
    target::Target,
    trace::{assert_no_trace, has_region},
};

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
const PAGE: u64 = 4096;
const AT_FDCWD: u64 = (libc::AT_FDCWD as i64).cast_unsigned();

fn builder() -> LiveProcessBuilder {
    LiveProcess::builder()
}

/// Does `body` with a target and its space, and then looks whether anything is left.
fn with_space(builder: LiveProcessBuilder, body: impl FnOnce(&mut Target, &LiveProcess)) {
    let _turn = turn();
    let Some(mut target) = Target::start(&["--workers=spin,nanosleep,epoll,tick,eof"]) else { return };
    let space = attached_with(builder, target.pid());
    body(&mut target, &space);
    space.detach().expect("detaching");
    assert_no_trace(target.pid());
    target.quit();
}

/// A page of the target's for `bytes`, and whatever a call writes.
fn page_with(space: &LiveProcess, bytes: &[u8]) -> u64 {
    let page = space.map(Mapping::anonymous(PAGE, READ_WRITE)).expect("a page");
    space.write(page, bytes).expect("its bytes");
    page
}

fn text_at(space: &LiveProcess, addr: u64, len: u64) -> String {
    let mut bytes = vec![0; len.try_into().expect("a length")];
    space.read(addr, &mut bytes).expect("its bytes");
    String::from_utf8(bytes).expect("UTF-8")
}

/// What is mapped at an address, as a line of /proc/PID/maps.
fn mapping(pid: i32, addr: u64) -> Option<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let holds = |line: &&str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let parse = |text| u64::from_str_radix(text, 16).ok();
        Some((parse(start)?..parse(end)?).contains(&addr))
    };
    maps.lines().find(|line| holds(line) == Some(true)).map(str::to_owned)
}

#[test]
fn a_call_comes_from_another_process_with_the_rights_of_the_target() {
    with_space(builder(), |target, space| {
        let executor = space.execute(Sysno::getpid, [0; 6]).expect("getpid");
        assert!(executor > 0);
        assert_ne!(executor, u64::try_from(target.pid()).expect("a pid"));
        assert_ne!(executor, u64::from(std::process::id()));
        // SAFETY: getuid(2) takes nothing.
        let uid = unsafe { libc::getuid() };
        assert_eq!(space.execute(Sysno::getuid, [0; 6]).expect("getuid"), u64::from(uid));
    });
}

/// What somebody else in this program has open is not for calls that happen to know its number.
#[test]
fn descriptors_are_passed_as_such_and_numbers_are_refused() {
    with_space(builder(), |_, space| {
        let page = page_with(space, b"four");
        let refusal = |call: &Call<'_>| match space.syscall(call) {
            Err(Error::Descriptor { why, .. }) => why,
            other => panic!("{other:?}"),
        };
        let write = Call::new(Sysno::write).arg(1, page).arg(2, 4);
        assert_eq!(refusal(&write.arg(0, 1)), DescriptorError::Number(0));
        assert_eq!(refusal(&Call::new(Sysno::dup).arg(0, 1)), DescriptorError::Number(0));
        for nr in [Sysno::close, Sysno::close_range, Sysno::dup2, Sysno::dup3] {
            assert_eq!(refusal(&Call::new(nr).arg(0, 987_654)), DescriptorError::Closes);
        }
        let of_batch = space.batch(&[Call::new(Sysno::getpid), write.arg(0, 1)]);
        assert!(matches!(of_batch, Err(Error::Descriptor { .. })), "{of_batch:?}");
        // Numbers that are no descriptors, and descriptors.
        let name = page_with(space, b"/proc/self/status\0");
        let open = Call::new(Sysno::openat).arg(0, AT_FDCWD).arg(1, name);
        let status = space.syscall(&open).expect("openat").into_file().expect("a descriptor");
        let stat = Call::new(Sysno::fstat).fd(0, status.as_fd()).arg(1, page);
        assert_eq!(space.syscall(&stat).expect("fstat").value, 0);
        let copy = space.syscall(&Call::new(Sysno::dup).fd(0, status.as_fd())).expect("dup").into_file();
        assert!(copy.is_some_and(|copy| copy.as_raw_fd() != status.as_raw_fd()));
        let Returned { files, .. } = space.syscall(&Call::new(Sysno::pipe2).arg(0, page)).expect("pipe2");
        let [reader, writer] = <[OwnedFd; 2]>::try_from(files).expect("two ends");
        assert_eq!(space.syscall(&write.fd(0, writer.as_fd())).expect("write").value, 4);
        drop(writer);
        let mut bytes = Vec::new();
        fs::File::from(reader).read_to_end(&mut bytes).expect("the pipe");
        assert_eq!(bytes.len(), 4);
    });
    with_space(builder().files(Owner::Target), |_, space| {
        let ours = fs::File::open("/dev/null").expect("a descriptor");
        let read = space.syscall(&Call::new(Sysno::read).fd(0, ours.as_fd()));
        assert!(matches!(read, Err(Error::Descriptor { why: DescriptorError::Targets, .. })), "{read:?}");
    });
}

#[test]
fn the_errno_of_a_call_comes_back() {
    with_space(builder(), |_, space| {
        let result = space.execute(Sysno::munmap, [1, PAGE, 0, 0, 0, 0]);
        assert!(matches!(result, Err(Error::Space { errno: Errno::INVAL, .. })), "{result:?}");
        let result = space.execute(Sysno::close, [987_654, 0, 0, 0, 0, 0]);
        assert!(matches!(result, Err(Error::Space { errno: Errno::BADF, .. })), "{result:?}");
    });
}

#[test]
fn memory_is_mapped_and_unmapped_in_the_target() {
    with_space(builder(), |target, space| {
        let pid = target.pid();
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
        let args = [0, 3 * PAGE, u64::from(READ_WRITE.bits()), u64::from(flags), u64::MAX, 0];
        let addr = space.execute(Sysno::mmap, args).expect("mmap");
        assert!(mapping(pid, addr).is_some_and(|line| line.contains("rw-p")), "{:?}", mapping(pid, addr));
        space.protect(addr, PAGE, Protection::READ).expect("mprotect");
        assert!(mapping(pid, addr).is_some_and(|line| line.contains("r--p")), "{:?}", mapping(pid, addr));
        space.execute(Sysno::munmap, [addr, PAGE, 0, 0, 0, 0]).expect("munmap");
        assert_eq!(mapping(pid, addr), None);
        space.unmap(addr + PAGE, 2 * PAGE).expect("munmap");
        assert_eq!(mapping(pid, addr + PAGE), None);
    });
}

/// What was mapped for the target is the target's: it stays.
#[test]
fn memory_that_was_mapped_survives_detaching() {
    let _turn = turn();
    let Some(target) = Target::start(&["--workers=spin,tick"]) else { return };
    let space = attached(target.pid());
    let page = page_with(&space, b"left behind");
    space.detach().expect("detaching");
    let space = attached(target.pid());
    assert_eq!(text_at(&space, page, 11), "left behind");
    space.unmap(page, PAGE).expect("munmap");
    space.detach().expect("detaching");
    assert_eq!(mapping(target.pid(), page), None);
    assert_no_trace(target.pid());
    target.quit();
}

#[test]
fn a_file_of_the_callers_is_mapped() {
    with_space(builder(), |target, space| {
        let path = scratch().join("mapped");
        fs::write(&path, "text of a file").expect("a file");
        let file = fs::File::open(&path).expect("the file");
        let addr = space
            .map(Mapping::file(std::os::fd::AsFd::as_fd(&file), 0, PAGE, Protection::READ))
            .expect("a mapping");
        assert_eq!(text_at(space, addr, 14), "text of a file");
        assert!(mapping(target.pid(), addr).is_some_and(|line| line.ends_with("mapped")));
        space.unmap(addr, PAGE).expect("munmap");
    });
}

#[test]
fn madvise_takes_the_targets_pages() {
    with_space(builder(), |_, space| {
        let page = page_with(space, b"forget me");
        let advice = libc::MADV_DONTNEED.cast_unsigned();
        space.execute(Sysno::madvise, [page, PAGE, u64::from(advice), 0, 0, 0]).expect("madvise");
        assert_eq!(text_at(space, page, 9), "\0".repeat(9));
        space.unmap(page, PAGE).expect("munmap");
    });
}

#[test]
fn the_librarys_pages_cannot_be_changed() {
    with_space(builder(), |target, space| {
        let result = space.unmap(space.region().start, 64 << 20);
        assert!(matches!(result, Err(Error::Reserved { .. })), "{result:?}");
        let result = space.execute(Sysno::mprotect, [space.region().start + PAGE, PAGE, 7, 0, 0, 0]);
        assert!(matches!(result, Err(Error::Reserved { .. })), "{result:?}");
        assert!(has_region(target.pid()));
    });
}

#[test]
fn memory_is_read_and_written() {
    with_space(builder(), |target, space| {
        let word = target.first.number("word");
        let mut bytes = [0; 8];
        space.read(word, &mut bytes).expect("its memory");
        assert_eq!(u64::from_ne_bytes(bytes), 0x0123_4567_89ab_cdef);
        space.write(word, &42u64.to_ne_bytes()).expect("its memory");
        space.read(word, &mut bytes).expect("its memory");
        assert_eq!(u64::from_ne_bytes(bytes), 42);
        assert!(space.read(8, &mut bytes).is_err());
    });
}

#[test]
fn memory_goes_into_a_pipe_of_the_callers() {
    with_space(builder(), |target, space| {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let iovec: Vec<u8> =
            [target.first.number("word"), 8].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let iovec = page_with(space, &iovec);
        let pipe = u64::try_from(writer.as_raw_fd()).expect("a descriptor");
        assert_eq!(space.execute(Sysno::vmsplice, [pipe, iovec, 1, 0, 0, 0]).expect("vmsplice"), 8);
        drop(writer);
        let mut bytes = Vec::new();
        // To its end: nobody else keeps the other side.
        reader.read_to_end(&mut bytes).expect("the pipe");
        assert_eq!(bytes, 0x0123_4567_89ab_cdef_u64.to_ne_bytes());
        space.unmap(iovec, PAGE).expect("munmap");
    });
}

#[test]
fn a_descriptor_comes_back_to_the_caller() {
    with_space(builder(), |target, space| {
        let path = scratch().join("opened");
        fs::write(&path, "for the caller").expect("a file");
        let name = page_with(space, path.as_os_str().as_encoded_bytes());
        let fds_before = crate::trace::numbers(&format!("/proc/{}/fd", target.pid())).len();
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let fd = space
            .execute(Sysno::openat, [AT_FDCWD, name, u64::from(flags.cast_unsigned()), 0, 0, 0])
            .expect("openat");
        let fd = i32::try_from(fd).expect("a descriptor");
        // SAFETY: the call has just returned it to this process, which has told nobody else.
        let mut file = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut text = String::new();
        file.read_to_string(&mut text).expect("the file");
        assert_eq!(text, "for the caller");
        assert_eq!(fs::read_link(format!("/proc/self/fd/{fd}")).expect("its name"), path);
        let links = || {
            let fds = crate::trace::numbers(&format!("/proc/{}/fd", target.pid())).into_iter();
            fds.filter_map(|fd| fs::read_link(format!("/proc/{}/fd/{fd}", target.pid())).ok())
        };
        assert!(links().all(|link| link != path), "the target has it too, beside its {fds_before}");
        space.unmap(name, PAGE).expect("munmap");
    });
}

#[test]
fn a_bad_descriptor_of_the_callers_is_none_of_the_targets() {
    with_space(builder(), |_, space| {
        // The target has a standard input; the caller's copy of this number is closed.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let fd = u64::try_from(reader.as_raw_fd()).expect("a descriptor");
        drop((reader, writer));
        let page = page_with(space, b"");
        let result = space.execute(Sysno::read, [fd, page, 1, 0, 0, 0]);
        // Another test may have got this number in the meantime, but never a thing of the target's.
        assert!(result.is_err() || fs::read_link(format!("/proc/self/fd/{fd}")).is_ok(), "{result:?}");
        space.unmap(page, PAGE).expect("munmap");
    });
}

#[test]
fn files_of_two_threads_are_not_mixed_up() {
    const ROUNDS: u64 = 2000;
    with_space(builder(), |_, space| {
        let page = page_with(space, b"pvx\0");
        let memfd = || {
            let number = space.execute(Sysno::memfd_create, [page, 0, 0, 0, 0, 0]).expect("a file");
            // SAFETY: it has just been made for us.
            fs::File::from(unsafe { OwnedFd::from_raw_fd(number.try_into().expect("a descriptor")) })
        };
        let len = |file: &fs::File| file.metadata().expect("its length").len();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    assert_eq!(len(&memfd()), 0, "a new file has what another thread wrote");
                }
            });
            let ours = memfd();
            for round in 1..=ROUNDS {
                let args = [ours.as_raw_fd().unsigned_abs().into(), page, 4, 0, 0, 0];
                assert_eq!(space.execute(Sysno::write, args).expect("written"), 4);
                assert_eq!(len(&ours), 4 * round);
            }
        });
    });
}

#[test]
fn a_descriptor_of_the_target_is_made_in_its_table() {
    with_space(builder().files(Owner::Target), |target, space| {
        let own = format!("/proc/{}/fd", target.pid());
        assert_eq!(space.execute(Sysno::dup2, [1, 777, 0, 0, 0, 0]).expect("dup2"), 777);
        let link = |fd: u32| fs::read_link(format!("{own}/{fd}")).ok();
        assert_eq!(link(777), link(1));
        assert!(link(777).is_some());
        space.execute(Sysno::close, [777, 0, 0, 0, 0, 0]).expect("close");
        assert_eq!(link(777), None);
    });
}

#[test]
fn a_pipe_of_the_target_is_read_by_it() {
    with_space(builder().files(Owner::Target), |target, space| {
        // The line goes to the target's own standard output, which is a pipe to this test.
        let text = page_with(space, b"a line from elsewhere\n");
        assert_eq!(space.execute(Sysno::write, [1, text, 22, 0, 0, 0]).expect("write"), 22);
        assert_eq!(target.line(), "a line from elsewhere");
        space.unmap(text, PAGE).expect("munmap");
    });
}

#[test]
fn the_working_directory_is_the_one_asked_for() {
    let callers = env::current_dir().expect("a directory");
    for (owner, expected) in [(Owner::Caller, callers), (Owner::Target, PathBuf::from("/"))] {
        with_space(builder().directory(owner), |_, space| {
            let page = page_with(space, b"");
            let len = space.execute(Sysno::getcwd, [page, PAGE, 0, 0, 0, 0]).expect("getcwd");
            let text = text_at(space, page, len - 1);
            assert_eq!(PathBuf::from(text), expected, "with {owner:?}");
            space.unmap(page, PAGE).expect("munmap");
        });
    }
}

#[test]
fn the_umask_of_the_target_is_shared_when_asked_for() {
    let umask = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        status.lines().find_map(|line| line.strip_prefix("Umask:\t").map(str::to_owned))
    };
    with_space(builder().directory(Owner::Target), |target, space| {
        let old = space.execute(Sysno::umask, [0o123, 0, 0, 0, 0, 0]).expect("umask");
        assert_eq!(umask(target.pid()).as_deref(), Some("0123"));
        space.execute(Sysno::umask, [old, 0, 0, 0, 0, 0]).expect("umask");
    });
    with_space(builder(), |target, space| {
        let (before, own) = (umask(target.pid()), umask(std::process::id().try_into().expect("a pid")));
        space.execute(Sysno::umask, [0o123, 0, 0, 0, 0, 0]).expect("umask");
        assert_eq!(umask(target.pid()), before, "the target's has changed");
        assert_eq!(umask(std::process::id().try_into().expect("a pid")), own, "the caller's has changed");
    });
}

/// The first word of a `struct sigaction` is the handler.
fn handler_of(space: &LiveProcess, signal: i32) -> u64 {
    let page = page_with(space, b"");
    let signal = u64::from(signal.cast_unsigned());
    space.execute(Sysno::rt_sigaction, [signal, 0, page, 8, 0, 0]).expect("rt_sigaction");
    let mut bytes = [0; 8];
    space.read(page, &mut bytes).expect("the handler");
    space.unmap(page, PAGE).expect("munmap");
    u64::from_ne_bytes(bytes)
}

#[test]
fn handlers_are_those_asked_for() {
    with_space(builder().handlers(Owner::Target), |target, space| {
        assert_eq!(handler_of(space, libc::SIGUSR2), target.first.number("handler"));
    });
    with_space(builder(), |target, space| {
        assert_ne!(handler_of(space, libc::SIGUSR2), target.first.number("handler"));
    });
}

#[test]
fn handlers_of_the_executor_are_not_the_targets() {
    with_space(builder(), |target, space| {
        let caught = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
            status.lines().filter(|line| line.starts_with("Sig")).map(str::to_owned).collect::<Vec<_>>()
        };
        let before: Vec<_> =
            caught(target.pid()).into_iter().filter(|line| !line.starts_with("SigQ")).collect();
        // A struct sigaction that ignores.
        let ignore: Vec<u8> = [1u64, 0, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let page = page_with(space, &ignore);
        let signal = u64::from(libc::SIGUSR2.cast_unsigned());
        space.execute(Sysno::rt_sigaction, [signal, page, 0, 8, 0, 0]).expect("rt_sigaction");
        space.unmap(page, PAGE).expect("munmap");
        let changed = caught(target.pid())
            .into_iter()
            .filter(|line| line.starts_with("SigIgn") || line.starts_with("SigCgt"));
        for line in changed {
            assert!(before.contains(&line), "{line}, and before {before:?}");
        }
    });
}

#[test]
fn everything_may_be_the_targets_at_once() {
    let all = builder().files(Owner::Target).directory(Owner::Target).handlers(Owner::Target);
    with_space(all, |target, space| {
        assert_eq!(handler_of(space, libc::SIGUSR2), target.first.number("handler"));
        assert_eq!(space.execute(Sysno::dup2, [1, 777, 0, 0, 0, 0]).expect("dup2"), 777);
        space.execute(Sysno::close, [777, 0, 0, 0, 0, 0]).expect("close");
    });
}
