//! Memory of a space: mapped, read, written, shared, copied; and errors that say what was wrong.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    os::fd::AsFd,
    sync::Arc,
};

use iced_x86::{IcedError, code_asm::*};
use process_vm_exec::{
    AddressSpace, Call, Context, DEFAULT_REGION, Engine, Errno, Error, Exit, Mapping, Protection,
    RegisteredFile, Registers, SignalSet, Sysno,
};

use crate::common::{
    CODE, DATA, Guest, NR, PAGE, READ, READ_WRITE, STACK_TOP, UNMAPPED, asm, claims, kill, pid_of, space,
};

/// The executor's pages.
const RESERVED: u64 = DEFAULT_REGION.start;
const RESERVED_LEN: u64 = DEFAULT_REGION.end - DEFAULT_REGION.start;

/// Where nothing is mapped, for many mappings.
const ROOM: u64 = 0x10_0000_0000;

fn empty(engine: Engine) -> AddressSpace {
    AddressSpace::builder().engine(engine).create().expect("an address space")
}

/// A file with some bytes, of which nothing but the descriptor is left.
fn file(engine: Engine, claim: &str, bytes: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("pvx-{}-{claim}-{engine}", std::process::id()));
    fs::write(&path, bytes).expect("a file");
    let file = File::options().read(true).write(true).open(&path).expect("a file");
    fs::remove_file(&path).expect("a file");
    file
}

fn read(space: &AddressSpace, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    space.read(addr, &mut bytes).expect("readable memory");
    bytes
}

/// `top: add $1,DATA; mov DATA,%rdi; mov $NR,%eax; syscall; jmp top`
fn count_in_memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.add(qword_ptr(DATA), 1)?;
    a.mov(rdi, qword_ptr(DATA))?;
    a.mov(eax, NR)?;
    a.syscall()?;
    a.jmp(top)
}

fn count(space: &AddressSpace, ctx: &mut Context) -> u64 {
    match space.run(ctx, &SignalSet::all()).expect("a run") {
        Exit::Syscall => ctx.syscall().args[0],
        other => panic!("{other:?}"),
    }
}

claims! {
    fn descriptors_are_passed_to_calls_of_a_batch(engine) {
        let space = empty(engine);
        let (first, second) = (file(engine, "first", b"first"), file(engine, "second", b"second"));
        let flags = u64::from(libc::MAP_PRIVATE.unsigned_abs());
        let map = Call::with_args(Sysno::mmap, [0, PAGE, u64::from(READ.bits()), flags, 0, 0]);
        let calls = [map.fd(4, first.as_fd()), Call::new(Sysno::getpid), map.fd(4, second.as_fd())];
        let results = space.batch(&calls).expect("the space lives");
        assert_eq!(read(&space, results[0].expect("mmap"), 5), b"first");
        assert_eq!(results[1].map(|pid| pid.cast_signed()), Ok(pid_of(&space).into()));
        assert_eq!(read(&space, results[2].expect("mmap"), 6), b"second");
        // Behind those that registered files may have.
        assert_eq!(space.batch(&[map.arg(4, 200)]).expect("the space lives"), [Err(Errno::BADF)]);
    }

    fn a_fork_that_has_no_room_for_its_pages_is_refused_and_leaves_its_parent(engine) {
        let space = space(engine, &[]);
        let most: u64 = fs::read_to_string("/proc/sys/vm/max_map_count").expect("the limit").trim().parse().expect("a number");
        // One behind the other with other rights each, so that the kernel does not join them.
        let flags = u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED).unsigned_abs());
        let map = |page: u64| Call::with_args(Sysno::mmap, [ROOM + page * PAGE, PAGE, page % 2, flags, u64::MAX, 0]);
        let results = space.batch(&(0..most + 2).map(map).collect::<Vec<_>>()).expect("the space lives");
        assert!(results.contains(&Err(Errno::NOMEM)));
        let fork = space.fork();
        assert!(fork.is_err_and(|error| error.errno() == Errno::NOMEM));
        space.syscall(Sysno::getpid, [0; 6]).expect("the parent lives");
    }

    fn a_new_space_has_nothing_but_the_executor_and_the_vdso(engine) {
        let space = empty(engine);
        let maps = fs::read_to_string(format!("/proc/{}/maps", pid_of(&space))).expect("maps");
        for line in maps.lines() {
            let start = line.split('-').next().and_then(|text| u64::from_str_radix(text, 16).ok()).expect("an address");
            let of_executor = (RESERVED..RESERVED + RESERVED_LEN).contains(&start);
            let of_kernel = ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"].iter().any(|name| line.ends_with(name));
            assert!(of_executor || of_kernel, "{line}");
        }
    }

    fn anonymous_memory_is_zero_and_keeps_what_is_written(engine) {
        let space = empty(engine);
        let addr = space.map(Mapping::anonymous(4 * PAGE, READ_WRITE)).expect("memory");
        assert_eq!(addr % PAGE, 0);
        assert_eq!(read(&space, addr, 4096), vec![0; 4096]);
        space.write(addr + PAGE - 3, b"across").expect("memory");
        assert_eq!(read(&space, addr + PAGE - 3, 6), b"across");
    }

    fn memory_is_mapped_exactly_where_it_is_asked_for(engine) {
        let space = empty(engine);
        for addr in [0x1_0000, UNMAPPED, 0x5555_5555_0000, 0x7fff_0000_0000] {
            assert_eq!(space.map(Mapping::anonymous(PAGE, READ_WRITE).at(addr)).expect("memory"), addr);
            space.write(addr, &[1]).expect("memory");
        }
    }

    fn mapping_at_an_address_replaces_what_was_there(engine) {
        let space = empty(engine);
        space.map(Mapping::anonymous(PAGE, READ_WRITE).at(DATA)).expect("memory");
        space.write(DATA, b"old").expect("memory");
        space.map(Mapping::anonymous(PAGE, READ_WRITE).at(DATA)).expect("memory");
        assert_eq!(read(&space, DATA, 3), [0; 3]);
        let careful = Mapping::anonymous(PAGE, READ_WRITE).near(DATA).flags(libc::MAP_FIXED_NOREPLACE.cast_unsigned());
        let error = space.map(careful).expect_err("it is taken");
        assert_eq!(error.errno(), Errno::EXIST);
    }

    fn large_transfers_arrive_whole(engine) {
        let space = empty(engine);
        let len = 8 << 20;
        space.map(Mapping::anonymous(len as u64, READ_WRITE).at(UNMAPPED)).expect("memory");
        let bytes: Vec<u8> = (0..len).map(|at: usize| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        space.write(UNMAPPED, &bytes).expect("memory");
        assert!(read(&space, UNMAPPED, len) == bytes);
        space.read(UNMAPPED, &mut []).expect("nothing is always there");
        space.write(UNMAPPED, &[]).expect("nothing is always there");
    }

    fn memory_that_is_not_there_cannot_be_read_or_written(engine) {
        let space = empty(engine);
        assert_eq!(space.read(UNMAPPED, &mut [0; 4]).expect_err("unmapped").errno(), Errno::FAULT);
        assert_eq!(space.write(UNMAPPED, &[0; 4]).expect_err("unmapped").errno(), Errno::FAULT);
        space.map(Mapping::anonymous(PAGE, READ_WRITE).at(UNMAPPED)).expect("memory");
        // Half there is not there.
        assert_eq!(space.read(UNMAPPED + PAGE - 2, &mut [0; 4]).expect_err("half").errno(), Errno::FAULT);
        assert_eq!(space.write(UNMAPPED + PAGE - 2, &[0; 4]).expect_err("half").errno(), Errno::FAULT);
        for addr in [u64::MAX, u64::MAX - 3, 0x8000_0000_0000, 0xffff_8000_0000_0000] {
            assert!(space.read(addr, &mut [0; 4]).is_err(), "{addr:#x}");
            assert!(space.write(addr, &[0; 4]).is_err(), "{addr:#x}");
        }
    }

    fn unmapped_memory_is_gone(engine) {
        let space = empty(engine);
        space.map(Mapping::anonymous(3 * PAGE, READ_WRITE).at(UNMAPPED)).expect("memory");
        space.unmap(UNMAPPED + PAGE, PAGE).expect("memory");
        space.write(UNMAPPED, &[1]).expect("before the hole");
        assert_eq!(space.write(UNMAPPED + PAGE, &[1]).expect_err("the hole").errno(), Errno::FAULT);
        space.write(UNMAPPED + 2 * PAGE, &[1]).expect("behind the hole");
        space.unmap(UNMAPPED + PAGE, PAGE).expect("as munmap(2): a hole may be unmapped");
    }

    fn protection_binds_the_guest(engine) {
        let mut guest = Guest::new(engine, count_in_memory);
        guest.call();
        guest.space.protect(DATA, PAGE, READ).expect("data");
        assert_eq!(guest.fault().addr, DATA);
        guest.space.protect(DATA, PAGE, READ_WRITE).expect("data");
        assert_eq!(guest.call().args[0], 2);
        let missing = guest.space.protect(UNMAPPED, PAGE, READ).expect_err("nothing there");
        assert_eq!(missing.errno(), Errno::NOMEM);
    }

    fn the_executors_pages_are_refused_with_a_typed_error(engine) {
        let space = empty(engine);
        let last = RESERVED + RESERVED_LEN - PAGE;
        let ranges = [
            (RESERVED, PAGE), (last, PAGE), (RESERVED - PAGE, 2 * PAGE), (last, 2 * PAGE),
            (RESERVED - PAGE, RESERVED_LEN + 2 * PAGE), (RESERVED + 0x10_0000, 1), (PAGE, RESERVED),
        ];
        for (addr, len) in ranges {
            let map = space.map(Mapping::anonymous(len, READ_WRITE).at(addr)).map(drop);
            let results = [map, space.unmap(addr, len), space.protect(addr, len, READ_WRITE)];
            for (what, result) in ["map", "unmap", "protect"].iter().zip(results) {
                assert!(matches!(result, Err(Error::Reserved { .. })), "{what} {addr:#x}+{len:#x}: {result:?}");
            }
        }
        space.map(Mapping::anonymous(PAGE, READ).at(RESERVED - PAGE)).expect("right below is free");
        space.map(Mapping::anonymous(PAGE, READ).at(RESERVED + RESERVED_LEN)).expect("right above is free");
    }

    fn senseless_ranges_give_errors(engine) {
        let space = empty(engine);
        for (addr, len) in [(UNMAPPED + 1, PAGE), (UNMAPPED, 0), (u64::MAX - PAGE + 1, PAGE), (UNMAPPED, u64::MAX), (u64::MAX, u64::MAX)] {
            assert!(space.map(Mapping::anonymous(len, READ_WRITE).at(addr)).is_err(), "map {addr:#x}+{len:#x}");
            if (addr, len) != (UNMAPPED, 0) {
                assert!(space.unmap(addr, len).is_err(), "unmap {addr:#x}+{len:#x}");
                assert!(space.protect(addr, len, READ).is_err(), "protect {addr:#x}+{len:#x}");
            }
        }
        space.map(Mapping::anonymous(PAGE, READ_WRITE).at(UNMAPPED)).expect("still in order");
    }

    fn a_private_file_mapping_shows_the_file_and_leaves_it_alone(engine) {
        let mut file = file(engine, "private", b"as it was in the file");
        let space = empty(engine);
        space.map(Mapping::file(file.as_fd(), 0, PAGE, READ_WRITE).at(DATA)).expect("a mapping");
        assert_eq!(read(&space, DATA, 5), b"as it");
        space.write(DATA, b"XX").expect("memory");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("the file");
        assert_eq!(text, "as it was in the file");
    }

    fn a_file_is_mapped_from_the_offset_asked_for(engine) {
        let mut bytes = vec![1; 4096];
        bytes.extend([2; 4096]);
        let file = file(engine, "offset", &bytes);
        let space = empty(engine);
        let addr = space.map(Mapping::file(file.as_fd(), PAGE, PAGE, READ)).expect("a mapping");
        assert_eq!(read(&space, addr, 4), [2; 4]);
    }

    fn shared_mappings_of_one_file_join_spaces_and_file(engine) {
        let mut file = file(engine, "shared", &[0; 4096]);
        let spaces = [empty(engine), empty(engine)];
        for space in &spaces {
            space.map(Mapping::file(file.as_fd(), 0, PAGE, READ_WRITE).shared().at(DATA)).expect("a mapping");
        }
        spaces[0].write(DATA + 8, b"hello").expect("memory");
        assert_eq!(read(&spaces[1], DATA + 8, 5), b"hello");
        let mut bytes = [0; 13];
        file.read_exact(&mut bytes).expect("the file");
        assert_eq!(&bytes[8..], b"hello");
        file.rewind().expect("the file");
        file.write_all(b"there").expect("the file");
        assert_eq!(read(&spaces[0], DATA, 5), b"there");
    }

    fn a_file_mapping_needs_the_files_rights(engine) {
        let path = std::env::temp_dir().join(format!("pvx-{}-rights-{engine}", std::process::id()));
        fs::write(&path, [0; 4096]).expect("a file");
        let file = File::open(&path).expect("a file");
        fs::remove_file(&path).expect("a file");
        let space = empty(engine);
        let error = space.map(Mapping::file(file.as_fd(), 0, PAGE, READ_WRITE).shared()).expect_err("read-only");
        assert_eq!(error.errno(), Errno::ACCESS);
    }

    fn a_mapped_file_leaves_no_descriptor_in_the_guest(engine) {
        let file = file(engine, "descriptor", &[0; 4096]);
        let mut guest = Guest::new(engine, count_in_memory);
        guest.call();
        guest.space.map(Mapping::file(file.as_fd(), 0, PAGE, READ)).expect("a mapping");
        guest.call();
        crate::life::assert_no_descriptors(pid_of(&guest.space));
    }

    fn system_calls_run_in_the_space(engine) {
        let space = empty(engine);
        let pid = space.syscall(Sysno::getpid, [0; 6]).expect("getpid");
        assert_eq!(i32::try_from(pid).expect("a pid"), pid_of(&space));
        let args = [0, PAGE, 3, u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned()), u64::MAX, 0];
        let addr = space.syscall(Sysno::mmap, args).expect("mmap");
        space.write(addr, b"here").expect("memory");
        assert_eq!(space.syscall(Sysno::munmap, [addr, PAGE, 0, 0, 0, 0]).expect("munmap"), 0);
        assert_eq!(space.write(addr, b"gone").expect_err("unmapped").errno(), Errno::FAULT);
    }

    fn a_system_call_that_fails_gives_its_errno(engine) {
        let space = empty(engine);
        let error = space.syscall(Sysno::munmap, [1, PAGE, 0, 0, 0, 0]).expect_err("not a page's address");
        assert!(matches!(error, Error::Space { errno: Errno::INVAL, .. }), "{error:?}");
    }

    fn a_batch_gives_each_result_in_order(engine) {
        let space = empty(engine);
        let flags = u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED).cast_unsigned());
        let calls = [
            Call::with_args(Sysno::mmap, [UNMAPPED, PAGE, 3, flags, u64::MAX, 0]),
            Call::with_args(Sysno::munmap, [1, PAGE, 0, 0, 0, 0]),
            Call::with_args(Sysno::mprotect, [UNMAPPED, PAGE, 1, 0, 0, 0]),
            Call::with_args(Sysno::munmap, [UNMAPPED, PAGE, 0, 0, 0, 0]),
            Call::with_args(Sysno::mprotect, [UNMAPPED, PAGE, 1, 0, 0, 0]),
        ];
        let results = space.batch(&calls).expect("a batch");
        assert_eq!(results, [Ok(UNMAPPED), Err(Errno::INVAL), Ok(0), Ok(0), Err(Errno::NOMEM)]);
        assert_eq!(space.batch(&[]).expect("nothing to do"), []);
    }

    fn a_long_batch_is_done_whole(engine) {
        let space = empty(engine);
        let pid = u64::from(pid_of(&space).cast_unsigned());
        let calls = vec![Call::with_args(Sysno::getpid, [0; 6]); 1000];
        assert_eq!(space.batch(&calls).expect("a batch"), vec![Ok(pid); 1000]);
    }

    fn memory_changes_while_a_guest_runs(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.cmp(dword_ptr(DATA), 0)?;
            a.je(top)?;
            a.mov(ebx, dword_ptr(UNMAPPED))?;
            a.mov(eax, NR)?;
            a.syscall()
        });
        let space = Arc::clone(&guest.space);
        let runner = std::thread::spawn(move || {
            guest.call();
            guest.ctx.registers().rbx
        });
        std::thread::sleep(std::time::Duration::from_millis(10));
        space.map(Mapping::anonymous(PAGE, READ_WRITE).at(UNMAPPED)).expect("memory");
        space.write(UNMAPPED, &[42]).expect("memory");
        space.write(DATA, &[1]).expect("memory");
        assert_eq!(runner.join().expect("the runner"), 42);
    }

    fn a_fork_has_the_same_memory_and_goes_its_own_way(engine) {
        let mut parent = Guest::new(engine, count_in_memory);
        assert_eq!(parent.call().args[0], 1);
        let child = parent.space.fork().expect("a fork");
        assert_ne!(pid_of(&child), pid_of(&parent.space));
        assert_eq!(child.engine(), parent.space.engine());
        let mut child_ctx = parent.ctx.try_clone().expect("a copy");
        assert_eq!(count(&child, &mut child_ctx), 2);
        assert_eq!(count(&child, &mut child_ctx), 3);
        assert_eq!(parent.call().args[0], 2);
        child.write(DATA, &100u64.to_ne_bytes()).expect("memory");
        assert_eq!(parent.call().args[0], 3);
        assert_eq!(count(&child, &mut child_ctx), 101);
        child.unmap(DATA, PAGE).expect("memory");
        assert_eq!(parent.call().args[0], 4);
    }

    fn either_side_of_a_fork_outlives_the_other(engine) {
        let mut parent = Guest::new(engine, count_in_memory);
        parent.call();
        let child = parent.space.fork().expect("a fork");
        let mut child_ctx = parent.ctx.try_clone().expect("a copy");
        let grandchild = child.fork().expect("a fork of a fork");
        let mut grandchild_ctx = child_ctx.try_clone().expect("a copy");
        drop(parent);
        assert_eq!(count(&child, &mut child_ctx), 2);
        kill(pid_of(&child), libc::SIGKILL);
        assert!(matches!(child.run(&mut child_ctx, &SignalSet::all()), Ok(Exit::Died(_))));
        drop(child);
        assert_eq!(count(&grandchild, &mut grandchild_ctx), 2);
    }

    fn shared_mappings_stay_shared_over_a_fork(engine) {
        let parent = empty(engine);
        parent.map(Mapping::anonymous(PAGE, READ_WRITE).shared().at(DATA)).expect("memory");
        let child = parent.fork().expect("a fork");
        child.write(DATA, b"both").expect("memory");
        assert_eq!(read(&parent, DATA, 4), b"both");
    }

    fn a_fork_after_many_calls_runs_the_same_code(engine) {
        let code = asm(count_in_memory);
        let parent = space(engine, &code);
        let mut ctx = Context::new(CODE, STACK_TOP);
        for round in 1..=20 {
            assert_eq!(count(&parent, &mut ctx), round);
        }
        let child = parent.fork().expect("a fork");
        let mut child_ctx = ctx.try_clone().expect("a copy");
        for round in 21..=40 {
            assert_eq!(count(&child, &mut child_ctx), round);
            assert_eq!(count(&parent, &mut ctx), round);
        }
    }

    fn a_fork_while_a_guest_runs_is_whole(engine) {
        let mut guest = Guest::new(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.add(qword_ptr(DATA), 1)?;
            a.jmp(top)
        });
        let space = Arc::clone(&guest.space);
        let interrupter = guest.ctx.interrupter();
        let runner = std::thread::spawn(move || guest.interrupted());
        for _ in 0..10 {
            let child = space.fork().expect("a fork");
            let seen = read(&child, DATA, 8);
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert_eq!(read(&child, DATA, 8), seen, "nothing runs in the child yet");
        }
        interrupter.interrupt();
        runner.join().expect("the runner");
    }

    fn text_can_be_made_in_place_by_the_supervisor(engine) {
        let space = empty(engine);
        let everything = READ_WRITE | Protection::EXEC;
        space.map(Mapping::anonymous(PAGE, everything).at(CODE)).expect("memory");
        for nr in [NR, NR + 1] {
            space.write(CODE, &asm(|a| { a.mov(eax, nr)?; a.syscall() })).expect("memory");
            let mut ctx = Context::new(CODE, 0);
            match space.run(&mut ctx, &SignalSet::all()) {
                Ok(Exit::Syscall) => assert_eq!(ctx.syscall().nr, u64::from(nr)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn a_registered_file_is_mapped_in_spaces_old_and_new(engine) {
        const COUNT: u64 = 5;
        let file_of = |n: u64| file(engine, &format!("registered-{n}"), &[u8::try_from(n).expect("a small number"); 8192]);
        let (old, forked) = (empty(engine), empty(engine));
        // So that it has a way for others, too.
        let passed = file_of(77);
        old.map(Mapping::file(passed.as_fd(), 0, PAGE, READ).at(ROOM)).expect("a file that is passed");
        let registered: Vec<_> =
            (0..COUNT).map(|n| RegisteredFile::new(file_of(n)).expect("room for one more")).collect();
        let check = |space: &AddressSpace| {
            // The last one first; those before come along.
            for (n, &file) in registered.iter().enumerate().rev() {
                let at = ROOM + PAGE * (1 + n as u64);
                space.map(Mapping::registered(file, PAGE, PAGE, READ).at(at)).expect("a registered file");
                assert_eq!(read(space, at, 2), [u8::try_from(n).expect("few"); 2]);
                space.map(Mapping::file(passed.as_fd(), 0, PAGE, READ).at(at)).expect("a file that is passed");
                assert_eq!(read(space, at, 2), [77; 2]);
            }
            let batch: Vec<_> = (0u64..).zip(&registered).map(|(n, &file)| {
                Mapping::registered(file, 0, PAGE, READ_WRITE).shared().at(ROOM + PAGE * (20 + n)).call()
            }).collect();
            assert!(space.batch(&batch).expect("a batch").iter().all(Result::is_ok));
            assert_eq!(read(space, ROOM + PAGE * 23, 1), [3]);
        };
        let before = forked.fork().expect("a fork");
        check(&old);
        check(&old.fork().expect("a fork"));
        check(&empty(engine));
        check(&before);
        check(&forked);
        // Shared by all, and by who registered it.
        let space = empty(engine);
        let shared = Mapping::registered(registered[0], 0, PAGE, READ_WRITE).shared().at(ROOM);
        space.map(shared).expect("a mapping");
        old.map(shared).expect("a mapping");
        space.write(ROOM, b"seen").expect("memory");
        assert_eq!(read(&old, ROOM, 4), b"seen");
    }

    fn a_space_that_is_cleared_is_as_a_new_one(engine) {
        let guest = Guest::new(engine, count_in_memory);
        let (space, mut ctx) = (&guest.space, Context::new(CODE, STACK_TOP));
        for round in 1..4 {
            for expected in 1..5 {
                assert_eq!(count(space, &mut ctx), expected, "in round {round}");
                ctx.set_return(Ok(0));
            }
            if engine == Engine::Rewrite {
                assert_eq!(space.rewritten_sites(), 1);
            }
            space.clear().expect("nobody runs");
            assert_eq!(space.rewritten_sites(), 0);
            let maps = fs::read_to_string(format!("/proc/{}/maps", pid_of(space))).expect("maps");
            for line in maps.lines() {
                let start = u64::from_str_radix(line.split('-').next().expect("a range"), 16).expect("a number");
                assert!(DEFAULT_REGION.contains(&start) || line.contains("[v"), "{line}");
            }
            assert!(maps.contains("[vdso]"), "{maps}");
            space.map(Mapping::anonymous(PAGE, READ_WRITE).at(DATA)).expect("room");
            space.map(Mapping::anonymous(PAGE, READ_WRITE).at(CODE)).expect("room");
            space.write(CODE, &asm(count_in_memory)).expect("memory");
            space.protect(CODE, PAGE, READ | Protection::EXEC).expect("memory");
            *ctx.registers_mut() = Registers { rip: CODE, ..Registers::default() };
        }
    }
}
