//! What the caller has open is not passed to processes whose user could take it, unless the caller allows that.

use std::{
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::ChildStdout,
    thread,
};

use process_vm_exec::{Errno, Error, Exposure, LiveProcess, Mapping, Owner, Protection, Sysno};

use crate::{
    common::{Execute as _, Killed, attached_with, skip, turn},
    kinds::start,
};

/// A process of another user than root.
fn process_of_another_user(kind: &str) -> Option<(Killed, BufReader<ChildStdout>)> {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        skip("only root can start processes of two users");
        return None;
    }
    start(kind, |command| command.uid(NOBODY).gid(NOBODY).current_dir("/"))
}

fn is_refusal<T: std::fmt::Debug>(result: &process_vm_exec::Result<T>) -> bool {
    matches!(result, Err(error @ Error::Exposed { uid: 65534, .. }) if error.errno() == Errno::ACCESS)
}

#[test]
fn descriptors_are_not_passed_to_another_users_process() {
    let _turn = turn();
    let Some((process, _)) = process_of_another_user("plain") else { return };
    let space = attached_with(LiveProcess::builder().directory(Owner::Target), process.pid());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let number = |end: &dyn AsRawFd| u64::from(end.as_raw_fd().unsigned_abs());
    let scratch = space.scratch(8).expect("memory");
    let write = [number(&writer), scratch.addr(), 8, 0, 0, 0];
    assert!(is_refusal(&space.execute(Sysno::write, write)));
    // None of a batch is made.
    let calls = [
        (Sysno::umask, [0o123, 0, 0, 0, 0, 0]),
        (Sysno::read, [number(&reader), scratch.addr(), 8, 0, 0, 0]),
    ];
    let calls = calls.map(|(nr, args)| process_vm_exec::Call::with_args(nr, args));
    let before = space.execute(Sysno::umask, [0o022, 0, 0, 0, 0, 0]).expect("umask");
    assert!(is_refusal(&space.batch(&calls)));
    assert_eq!(space.execute(Sysno::umask, [before, 0, 0, 0, 0, 0]).expect("umask"), 0o022);
    let file = std::fs::File::open("/proc/self/exe").expect("a file");
    assert!(is_refusal(&space.map(Mapping::file(file.as_fd(), 0, 4096, Protection::READ))));
    // What it opens itself comes from there, and it has it already.
    let pair = space.execute(Sysno::eventfd2, [0; 6]).expect("eventfd2");
    space.execute(Sysno::close, [pair, 0, 0, 0, 0, 0]).expect("close");
    drop(scratch);
    space.detach().expect("detaching");
}

/// As a thief shows, who tries all the time.
#[test]
fn what_is_passed_because_it_is_allowed_can_be_taken() {
    let _turn = turn();
    let Some((thief, mut says)) = process_of_another_user("thief") else { return };
    let builder = LiveProcess::builder().directory(Owner::Target).exposure(Exposure::Allowed);
    let space = attached_with(builder, thief.pid());
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let scratch = space.scratch(8).expect("memory");
    let space_there = &space;
    thread::scope(|scope| {
        let read = [reader.as_raw_fd().unsigned_abs().into(), scratch.addr(), 1, 0, 0, 0];
        let call = scope.spawn(move || space_there.execute(Sysno::read, read));
        let mut line = String::new();
        says.read_line(&mut line).expect("its output");
        assert_eq!(line, "stolen\n");
        writer.write_all(b"x").expect("a byte");
        assert_eq!(call.join().expect("no panic").expect("read"), 1);
    });
    drop(scratch);
    space.detach().expect("detaching");
}

/// It goes there by name, with the rights that it has.
#[test]
fn the_directory_is_not_passed_to_another_users_process() {
    let _turn = turn();
    let Some((process, _)) = process_of_another_user("plain") else { return };
    let place = tempdir_for_root();
    let there = rustix::fs::open(".", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("here");
    std::env::set_current_dir(&place).expect("root may go there");
    let attached = LiveProcess::attach_pid(process.pid());
    rustix::process::fchdir(&there).expect("back");
    std::fs::remove_dir(&place).expect("it is empty");
    assert!(is_refusal(&attached), "{attached:?}");
}

/// A directory that only root may enter.
fn tempdir_for_root() -> std::path::PathBuf {
    use std::os::unix::fs::DirBuilderExt;
    let place = crate::common::scratch().join("only-for-root");
    std::fs::DirBuilder::new().mode(0o700).create(&place).expect("a directory");
    place
}

/// Who has our rights could take things from us.
#[test]
fn descriptors_are_passed_to_processes_with_the_callers_rights() {
    let _turn = turn();
    let Some((process, _)) = start("plain", |command| command) else { return };
    let space = attached_with(LiveProcess::builder(), process.pid());
    let (_, writer) = std::io::pipe().expect("a pipe");
    let scratch = space.scratch(8).expect("memory");
    let write = [writer.as_raw_fd().unsigned_abs().into(), scratch.addr(), 8, 0, 0, 0];
    let written = space.execute(Sysno::write, write);
    assert!(matches!(written, Err(Error::Space { errno: Errno::PIPE, .. })), "{written:?}");
    drop(scratch);
    space.detach().expect("detaching");
}
