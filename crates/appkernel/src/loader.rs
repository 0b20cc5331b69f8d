//! Loading a program into an empty address space.

use std::os::fd::AsFd;

use process_vm_exec::{AddressSpace, Errno, Mapping, Protection};
use rustix::{process::Resource, rand::GetRandomFlags};

use crate::{
    abi::{PAGE, page_down, page_up, size},
    elf::{Placement, Segment},
    program::{Binary, Program},
    stack::{Contents, Stack},
};

/// Where relocatable programs go, plus a random number of pages below 2^24; the heap grows above.
const PROGRAM_BASE: u64 = 0x5555_5555_4000;
/// The stack when the host sets no limit, and the most a guest gets.
const STACK_DEFAULT: u64 = 8 << 20;
const STACK_MAX: u64 = 256 << 20;

/// Why a good program could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The address space refused.
    #[error(transparent)]
    Space(#[from] process_vm_exec::Error),
    /// Arguments and environment are more than a quarter of the stack.
    #[error("the argument list is too long: {len} bytes of {max}")]
    TooManyArguments {
        /// What it takes.
        len: u64,
        /// What it may take.
        max: u64,
    },
    /// There are no random numbers for its addresses and its stack canary.
    #[error(
        "getrandom: {0}; a program needs secrets of its own, so see why the kernel gives none (seccomp?)"
    )]
    Random(Errno),
}

/// A loaded program.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) entry: u64,
    pub(crate) stack_pointer: u64,
    /// Where the pointers to its environment are.
    pub(crate) environment: u64,
    /// The end of the program, where its heap begins.
    pub(crate) heap: u64,
    pub(crate) auxv: Vec<u8>,
}

/// Loads `program`, its interpreter and a stack into `space`.
pub(crate) fn load(space: &AddressSpace, program: &Program) -> Result<Loaded, LoadError> {
    let bias = map_image(space, &program.binary, Role::Program)?;
    let image = &program.binary.image;
    let (entry, interpreter_base) = match &program.interpreter {
        None => (image.entry.wrapping_add(bias), 0),
        Some(interpreter) => {
            let base = map_image(space, interpreter, Role::Interpreter)?;
            (interpreter.image.entry.wrapping_add(base), base)
        }
    };
    let auxv = auxv(
        space,
        &[
            (libc::AT_PHDR, if image.headers_addr == 0 { 0 } else { image.headers_addr.wrapping_add(bias) }),
            (libc::AT_PHENT, 56),
            (libc::AT_PHNUM, image.headers_count),
            (libc::AT_BASE, interpreter_base),
            (libc::AT_ENTRY, image.entry.wrapping_add(bias)),
        ],
    );
    let stack = map_stack(space, program, auxv)?;
    Ok(Loaded {
        entry,
        stack_pointer: stack.pointer,
        // Above it are the number of arguments, these, and a null pointer.
        environment: stack.pointer + 8 * (program.args.len() as u64 + 2),
        heap: image.extent().end.wrapping_add(bias),
        auxv: stack.auxv,
    })
}

/// What an image is to the program that starts.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// The program itself: low, with room for the heap above it.
    Program,
    /// Its interpreter: wherever the kernel finds room.
    Interpreter,
}

/// Maps an image and returns what to add to its addresses.
fn map_image(space: &AddressSpace, binary: &Binary, role: Role) -> Result<u64, LoadError> {
    let image = &binary.image;
    let extent = image.extent();
    let len = extent.end - extent.start;
    let start = match (image.placement, role) {
        (Placement::Fixed, _) => reserve_at(space, extent.start, len)?,
        (Placement::Anywhere, Role::Program) => {
            let random = u64::from_ne_bytes(random_bytes()?) & 0xff_ffff;
            let base = (PROGRAM_BASE + random * PAGE) & !(image.align - 1);
            reserve_at(space, base + extent.start, len)?
        }
        (Placement::Anywhere, Role::Interpreter) => {
            // Room to move up to the next aligned address, and by as much as the image starts above one.
            let within = extent.start & (image.align - 1);
            let slack = image.align - PAGE;
            let found = reserve_anywhere(space, len + slack + within)?;
            ((found + slack) & !(image.align - 1)) + within
        }
    };
    let bias = start.wrapping_sub(extent.start);
    for segment in &image.segments {
        map_segment(space, binary, segment, bias)?;
    }
    Ok(bias)
}

fn reserve_at(space: &AddressSpace, addr: u64, len: u64) -> Result<u64, LoadError> {
    let flags = (libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE).cast_unsigned();
    Ok(space.map(Mapping::anonymous(len, Protection::empty()).near(addr).flags(flags))?)
}

fn reserve_anywhere(space: &AddressSpace, len: u64) -> Result<u64, LoadError> {
    let flags = libc::MAP_NORESERVE.cast_unsigned();
    Ok(space.map(Mapping::anonymous(len, Protection::empty()).flags(flags))?)
}

fn map_segment(space: &AddressSpace, binary: &Binary, segment: &Segment, bias: u64) -> Result<(), LoadError> {
    let start = segment.addr.wrapping_add(bias);
    let file_end = start + segment.file_len;
    let end = start + segment.len;
    let page_start = page_down(start);
    let file_pages_end = if segment.file_len == 0 { page_start } else { round_up(file_end) };
    if segment.file_len > 0 {
        let len = file_pages_end - page_start;
        let offset = page_down(segment.offset);
        space.map(Mapping::file(binary.file.as_fd(), offset, len, segment.protection).at(page_start))?;
    }
    // The rest of the last page of the file is the file's; programs expect zeroes.
    let tail = file_pages_end.saturating_sub(file_end);
    if segment.file_len > 0 && end > file_end && segment.protection.contains(Protection::WRITE) {
        space.write(file_end, &[0; 4096][..size(tail)])?;
    }
    let end = round_up(end);
    if end > file_pages_end {
        space.map(Mapping::anonymous(end - file_pages_end, segment.protection).at(file_pages_end))?;
    }
    Ok(())
}

/// Addresses in a checked image are far from the end of the address space.
fn round_up(addr: u64) -> u64 {
    page_up(addr).unwrap_or(u64::MAX)
}

/// The auxiliary vector (getauxval(3)), but for what points into the stack.
fn auxv(space: &AddressSpace, program: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let (hwcap, hwcap2) = rustix::param::linux_hwcap();
    let mut auxv = Vec::with_capacity(24);
    if let Some(vdso) = space.vdso() {
        auxv.push((libc::AT_SYSINFO_EHDR, vdso.start));
    }
    auxv.push((libc::AT_HWCAP, hwcap as u64));
    auxv.push((libc::AT_PAGESZ, PAGE));
    auxv.push((libc::AT_CLKTCK, rustix::param::clock_ticks_per_second()));
    auxv.extend(program);
    auxv.push((libc::AT_FLAGS, 0));
    auxv.push((libc::AT_UID, u64::from(rustix::process::getuid().as_raw())));
    auxv.push((libc::AT_EUID, u64::from(rustix::process::geteuid().as_raw())));
    auxv.push((libc::AT_GID, u64::from(rustix::process::getgid().as_raw())));
    auxv.push((libc::AT_EGID, u64::from(rustix::process::getegid().as_raw())));
    auxv.push((libc::AT_SECURE, 0));
    auxv.push((libc::AT_HWCAP2, hwcap2 as u64));
    let minimum = rustix::param::linux_minsigstksz();
    if minimum != 0 {
        auxv.push((libc::AT_MINSIGSTKSZ, minimum as u64));
    }
    auxv
}

fn map_stack(space: &AddressSpace, program: &Program, auxv: Vec<(u64, u64)>) -> Result<Stack, LoadError> {
    let limit = rustix::process::getrlimit(Resource::Stack).current.unwrap_or(STACK_DEFAULT);
    let len = page_down(limit.clamp(STACK_DEFAULT / 8, STACK_MAX));
    let strings: u64 = program
        .args
        .iter()
        .chain(&program.env)
        .map(|string| string.as_bytes_with_nul().len() as u64 + 8)
        .sum();
    if strings > len / 4 {
        return Err(LoadError::TooManyArguments { len: strings, max: len / 4 });
    }
    // One page more, which stays inaccessible: what overruns the stack must not run into something else.
    let flags = (libc::MAP_NORESERVE | libc::MAP_STACK).cast_unsigned();
    let guard = space.map(Mapping::anonymous(len + PAGE, Protection::empty()).flags(flags))?;
    let stack_start = guard + PAGE;
    space.map(Mapping::anonymous(len, program.binary.image.stack).at(stack_start).flags(flags))?;
    let contents = Contents {
        args: &program.args,
        env: &program.env,
        execfn: &program.execfn,
        auxv,
        random: random_bytes()?,
    };
    let stack = Stack::build(stack_start + len, contents);
    space.write(stack.pointer, &stack.bytes)?;
    Ok(stack)
}

/// The kernel gives so few bytes at once, or none.
fn random_bytes<const N: usize>() -> Result<[u8; N], LoadError> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty()).map_err(LoadError::Random)?;
    Ok(bytes)
}
