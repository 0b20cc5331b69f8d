//! Rounds without any engine: what a hand-off is measured against.

use std::{
    fs::File,
    hint,
    io::Write,
    os::fd::AsRawFd,
    process::{self, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};

use super::{
    case::{Placement, Rounds},
    cpus::Cpus,
    guest::timed,
};

/// A system call of this process itself.
pub(super) fn getppid_rounds() -> Rounds {
    Box::new(|rounds| {
        timed(rounds, || {
            hint::black_box(rustix::process::getppid());
            Ok(())
        })
    })
}

/// A word on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU32);

/// Ends the other side's loop.
const STOP: u32 = u32::MAX;

/// One cache line passed to a thread on another CPU and back: odd numbers are its turns.
pub(super) fn cache_line_rounds(cpus: &Cpus) -> Result<Rounds> {
    let cpus = cpus.clone();
    Ok(Box::new(move |rounds| {
        let line = Arc::new(Line::default());
        let (theirs, their_cpus) = (Arc::clone(&line), cpus.clone());
        let other = thread::spawn(move || {
            let pinned = their_cpus.pin_to(Placement::TwoCpus);
            loop {
                match theirs.0.load(Ordering::Acquire) {
                    STOP => return pinned,
                    turn if turn % 2 == 1 => theirs.0.store(turn + 1, Ordering::Release),
                    _ => hint::spin_loop(),
                }
            }
        });
        let there_and_back = |turn| {
            line.0.store(turn, Ordering::Release);
            while line.0.load(Ordering::Acquire) == turn {
                hint::spin_loop();
            }
        };
        there_and_back(1);
        let start = Instant::now();
        for round in 1..=rounds {
            there_and_back(round % (STOP / 4) * 2 + 1);
        }
        let ns = start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds);
        line.0.store(STOP, Ordering::Release);
        other.join().map_err(|_| anyhow::anyhow!("the other side panicked"))??;
        Ok(ns)
    }))
}

/// A program that exits at once, started by posix_spawn(3) and waited for.
pub(super) fn spawn_rounds(placement: Placement, cpus: &Cpus) -> Result<Rounds> {
    let program = TinyProgram::new()?;
    let cpus = cpus.clone();
    Ok(Box::new(move |rounds| cpus.spread(placement, || timed(rounds, || program.run()))?))
}

/// An ELF file in memory that does nothing but exit.
#[derive(Debug)]
pub(super) struct TinyProgram {
    path: String,
    _file: File,
}

impl TinyProgram {
    pub(super) fn new() -> Result<Self> {
        // Before Linux 6.3 there is no MFD_EXEC, and every such file is executable.
        let flags = MemfdFlags::CLOEXEC;
        let fd = match memfd_create("tiny", flags | MemfdFlags::EXEC) {
            Err(Errno::INVAL) => memfd_create("tiny", flags),
            other => other,
        }
        .context("memfd_create of an executable file (see sysctl vm.memfd_noexec)")?;
        let mut file = File::from(fd);
        file.write_all(&tiny_elf())?;
        // A file that is open for writing cannot be executed (ETXTBSY), so hold it for reading only.
        let held = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let path = format!("/proc/{}/fd/{}", process::id(), held.as_raw_fd());
        Ok(Self { path, _file: held })
    }

    /// Starts it and waits for its end.
    pub(super) fn run(&self) -> Result<()> {
        let status = Command::new(&self.path)
            .env_clear()
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit())
            .status()
            .context("starting a tiny program")?;
        ensure!(status.success(), "the tiny program ended with {status}");
        Ok(())
    }
}

/// One segment with `mov $60,%eax; xor %edi,%edi; syscall` right after the headers (elf(5)).
fn tiny_elf() -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    const BASE: u64 = 0x40_0000;
    const CODE: &[u8] = &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let size = HEADERS + CODE.len() as u64;

    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
    // e_type ET_EXEC, e_machine EM_X86_64, e_version; e_entry, e_phoff, e_shoff, e_flags.
    half(&mut elf, 2);
    half(&mut elf, 62);
    word(&mut elf, 1);
    long(&mut elf, BASE + HEADERS);
    long(&mut elf, 64);
    long(&mut elf, 0);
    word(&mut elf, 0);
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx.
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut elf, value);
    }
    // p_type PT_LOAD, p_flags R+X, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
    word(&mut elf, 1);
    word(&mut elf, 5);
    for value in [0, BASE, BASE, size, size, 4096] {
        long(&mut elf, value);
    }
    elf.extend(CODE);
    elf
}
