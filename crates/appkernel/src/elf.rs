//! ELF programs: what to map where. Every number in the file is checked before anything believes it.

use object::{
    LittleEndian, ReadRef,
    elf::{self, FileHeader64},
    read::elf::{FileHeader, ProgramHeader},
};
use process_vm_exec::Protection;

use crate::abi::{PAGE, page_down, page_up};

/// The end of the addresses that a program may ask for: the executor's pages begin there.
pub const ADDRESS_LIMIT: u64 = 0x7000_0000_0000;

/// The longest path of an interpreter.
const INTERPRETER_MAX: u64 = 4096;
/// The most program headers; Linux takes a page full (`ELF_MIN_ALIGN / sizeof(phdr)` and more), this is plenty.
const SEGMENTS_MAX: usize = 1024;

/// Why a file is not a program that can run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It does not begin with the ELF magic.
    #[error("it is no ELF file")]
    NotElf,
    /// The file ends before what it promises.
    #[error("the file is cut short: {0} lies beyond its end")]
    Truncated(&'static str),
    /// It is for another kind of machine.
    #[error("it is for {0}, and this machine runs 64-bit x86-64 programs")]
    Foreign(String),
    /// It is an object file, a core dump or something of that kind.
    #[error("ELF type {0} is no program (2 and 3 are)")]
    NotAProgram(u16),
    /// There is nothing to load.
    #[error("it has no segment to load")]
    NoSegments,
    /// Two segments claim the same page of memory.
    #[error("segments overlap at {0:#x}")]
    Overlap(u64),
    /// A segment lies outside the addresses of programs.
    #[error("a segment at {addr:#x} with {len:#x} bytes does not fit into the address space")]
    TooLarge {
        /// Where it is to begin.
        addr: u64,
        /// How long it is to be.
        len: u64,
    },
    /// A header has a value that makes no sense.
    #[error("its header is corrupt: {0}")]
    Corrupt(&'static str),
}

/// A program, as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// May it be loaded anywhere (`ET_DYN`)?
    pub placement: Placement,
    /// Where it starts, before relocation.
    pub entry: u64,
    /// What to load, by ascending address, without overlap, at least one.
    pub segments: Vec<Segment>,
    /// The program that loads this one (`PT_INTERP`).
    pub interpreter: Option<Vec<u8>>,
    /// Where the program headers are in memory, before relocation; 0 if they are not loaded.
    pub headers_addr: u64,
    /// How many program headers there are.
    pub headers_count: u64,
    /// The greatest alignment a segment wants, at least a page, a power of two.
    pub align: u64,
    /// Does it ask for an executable stack (`PT_GNU_STACK`)?
    pub stack: Protection,
}

/// Where an image may be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At its own addresses only.
    Fixed,
    /// Anywhere.
    Anywhere,
}

/// A part of a file to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first byte in memory, before relocation.
    pub addr: u64,
    /// Its bytes in memory; those beyond `file_len` are zero.
    pub len: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes in the file, at most `len`.
    pub file_len: u64,
    /// What the program may do with it.
    pub protection: Protection,
}

impl Image {
    /// Reads and checks the headers of `data`.
    ///
    /// # Errors
    /// Anything that is not a well-formed x86-64 program that fits into an address space.
    pub fn parse<'data, R: ReadRef<'data>>(data: R) -> Result<Self, ElfError> {
        let header = parse_header(data)?;
        let endian = LittleEndian;
        let placement = match header.e_type(endian) {
            elf::ET_EXEC => Placement::Fixed,
            elf::ET_DYN => Placement::Anywhere,
            other => return Err(ElfError::NotAProgram(other)),
        };
        let headers = header
            .program_headers(endian, data)
            .map_err(|_| ElfError::Truncated("the program header table"))?;
        if headers.len() > SEGMENTS_MAX {
            return Err(ElfError::Corrupt("too many program headers"));
        }
        let file_len = data.len().map_err(|()| ElfError::Truncated("everything"))?;

        let mut image = Self {
            placement,
            entry: header.e_entry(endian),
            segments: Vec::new(),
            interpreter: None,
            headers_addr: 0,
            headers_count: headers.len() as u64,
            align: PAGE,
            stack: Protection::READ | Protection::WRITE,
        };
        let headers_offset = header.e_phoff(endian);
        for header in headers {
            match header.p_type(endian) {
                elf::PT_LOAD => image.add_segment(header, file_len, headers_offset)?,
                elf::PT_INTERP => image.interpreter = Some(interpreter(header, data)?),
                elf::PT_GNU_STACK if header.p_flags(endian) & elf::PF_X != 0 => {
                    image.stack |= Protection::EXEC;
                }
                _ => {}
            }
        }
        image.check()?;
        Ok(image)
    }

    /// The pages from the first segment's to the last's, before relocation.
    pub fn extent(&self) -> std::ops::Range<u64> {
        let start = self.segments.first().map_or(0, |first| page_down(first.addr));
        let end = self.segments.last().map_or(0, |last| page_up(last.addr + last.len).unwrap_or(u64::MAX));
        start..end
    }

    fn add_segment(
        &mut self,
        header: &elf::ProgramHeader64<LittleEndian>,
        file_len: u64,
        headers_offset: u64,
    ) -> Result<(), ElfError> {
        let endian = LittleEndian;
        let segment = Segment {
            addr: header.p_vaddr(endian),
            len: header.p_memsz(endian),
            offset: header.p_offset(endian),
            file_len: header.p_filesz(endian),
            protection: protection(header.p_flags(endian)),
        };
        if segment.len == 0 {
            return Ok(());
        }
        if segment.addr >= ADDRESS_LIMIT || segment.len > ADDRESS_LIMIT - segment.addr {
            return Err(ElfError::TooLarge { addr: segment.addr, len: segment.len });
        }
        if segment.file_len > segment.len {
            return Err(ElfError::Corrupt("a segment has more bytes in the file than in memory"));
        }
        if segment.file_len > 0 && segment.addr % PAGE != segment.offset % PAGE {
            return Err(ElfError::Corrupt(
                "a segment's address and its place in the file differ within a page",
            ));
        }
        if segment.offset.checked_add(segment.file_len).is_none_or(|end| end > file_len) {
            return Err(ElfError::Truncated("a segment"));
        }
        let align = header.p_align(endian);
        if align > 1 && !align.is_power_of_two() {
            return Err(ElfError::Corrupt("an alignment is no power of two"));
        }
        if align > 1 << 30 {
            return Err(ElfError::Corrupt("an alignment is above 1 GiB"));
        }
        self.align = self.align.max(align);
        if headers_offset >= segment.offset && headers_offset - segment.offset < segment.file_len {
            self.headers_addr = segment.addr + (headers_offset - segment.offset);
        }
        self.segments.push(segment);
        Ok(())
    }

    /// What can be said only when all segments are known.
    fn check(&mut self) -> Result<(), ElfError> {
        if self.segments.is_empty() {
            return Err(ElfError::NoSegments);
        }
        self.segments.sort_by_key(|segment| segment.addr);
        for pair in self.segments.windows(2) {
            // Linkers do put two segments on one page of the file, never of memory.
            if page_up(pair[0].addr + pair[0].len).is_none_or(|end| end > page_down(pair[1].addr)) {
                return Err(ElfError::Overlap(pair[1].addr));
            }
        }
        let starts_in_a_segment = self
            .segments
            .iter()
            .any(|segment| segment.addr <= self.entry && self.entry - segment.addr < segment.len);
        if !starts_in_a_segment {
            return Err(ElfError::Corrupt("the entry point lies in no segment (a shared library?)"));
        }
        Ok(())
    }
}

/// Checks what `object` takes for granted or cannot tell apart: magic, class, byte order and machine.
fn parse_header<'data, R: ReadRef<'data>>(data: R) -> Result<&'data FileHeader64<LittleEndian>, ElfError> {
    let ident = data.read_bytes_at(0, 4).map_err(|()| ElfError::NotElf)?;
    if ident != elf::ELFMAG {
        return Err(ElfError::NotElf);
    }
    let ident = data.read_bytes_at(0, 20).map_err(|()| ElfError::Truncated("the file header"))?;
    if ident[5] == elf::ELFDATA2MSB {
        return Err(ElfError::Foreign("a big-endian machine".to_owned()));
    }
    let machine = u16::from_le_bytes([ident[18], ident[19]]);
    if ident[4] != elf::ELFCLASS64 || machine != elf::EM_X86_64 {
        return Err(ElfError::Foreign(machine_name(ident[4], machine)));
    }
    let header =
        FileHeader64::<LittleEndian>::parse(data).map_err(|_| ElfError::Truncated("the file header"))?;
    if header.e_phnum(LittleEndian) != 0
        && u64::from(header.e_phentsize(LittleEndian))
            != size_of::<elf::ProgramHeader64<LittleEndian>>() as u64
    {
        return Err(ElfError::Corrupt("program headers have an unknown size"));
    }
    Ok(header)
}

fn machine_name(class: u8, machine: u16) -> String {
    let bits = if class == elf::ELFCLASS32 { "32-bit" } else { "64-bit" };
    match machine {
        elf::EM_386 => format!("{bits} x86"),
        elf::EM_X86_64 => format!("{bits} x86-64 (x32)"),
        elf::EM_AARCH64 => format!("{bits} ARM (aarch64)"),
        elf::EM_ARM => format!("{bits} ARM"),
        elf::EM_RISCV => format!("{bits} RISC-V"),
        other => format!("{bits} machine {other}"),
    }
}

fn interpreter<'data, R: ReadRef<'data>>(
    header: &elf::ProgramHeader64<LittleEndian>,
    data: R,
) -> Result<Vec<u8>, ElfError> {
    let len = header.p_filesz(LittleEndian);
    if len > INTERPRETER_MAX {
        return Err(ElfError::Corrupt("the interpreter's name is too long"));
    }
    let bytes = data
        .read_bytes_at(header.p_offset(LittleEndian), len)
        .map_err(|()| ElfError::Truncated("the interpreter's name"))?;
    match bytes.iter().position(|&byte| byte == 0) {
        Some(nul) if nul > 0 => Ok(bytes[..nul].to_vec()),
        _ => Err(ElfError::Corrupt("the interpreter's name is empty or has no end")),
    }
}

fn protection(flags: u32) -> Protection {
    let mut protection = Protection::empty();
    protection.set(Protection::READ, flags & elf::PF_R != 0);
    protection.set(Protection::WRITE, flags & elf::PF_W != 0);
    protection.set(Protection::EXEC, flags & elf::PF_X != 0);
    protection
}

/// Is this the beginning of an ELF file?
pub(crate) fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&elf::ELFMAG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_program() -> Vec<u8> {
        std::fs::read("/proc/self/exe").expect("a test can read itself")
    }

    #[test]
    fn a_real_program_has_segments_an_entry_and_an_interpreter() {
        let bytes = host_program();
        let image = Image::parse(&bytes[..]).expect("this test runs");
        assert!(image.segments.len() >= 2);
        assert_eq!(image.placement, Placement::Anywhere);
        assert!(image.interpreter.is_some_and(|path| path.starts_with(b"/")));
    }

    #[test]
    fn a_program_cut_before_the_end_of_its_last_segment_is_refused() {
        let bytes = host_program();
        let image = Image::parse(&bytes[..]).expect("this test runs");
        let end = image.segments.iter().map(|segment| segment.offset + segment.file_len).max().unwrap();
        let end = usize::try_from(end).unwrap();
        for len in (0..1024).chain((1024..end).step_by(50_021)).chain([end - 1]) {
            assert!(Image::parse(&bytes[..len]).is_err(), "{len} bytes were taken for a program");
        }
    }

    #[test]
    fn foreign_machines_are_named() {
        let mut bytes = host_program()[..4096].to_vec();
        bytes[18] = 183;
        assert_eq!(Image::parse(&bytes[..]), Err(ElfError::Foreign("64-bit ARM (aarch64)".to_owned())));
        bytes[4] = 1;
        bytes[18] = 3;
        assert_eq!(Image::parse(&bytes[..]), Err(ElfError::Foreign("32-bit x86".to_owned())));
    }
}
