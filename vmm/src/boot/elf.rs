//! ELF32 executables for i386 (System V gABI, chapter 4 and 5), as multiboot images use them.

use super::{BootError, Image, layout};
use crate::mmu::GuestRam;

const FORMAT: &str = "multiboot ELF";
const HEADER: usize = 52;
const PROGRAM_HEADER: usize = 32;
/// More than any kernel has; bounds the work on a hostile file.
const MAX_SEGMENTS: usize = 64;
const ET_EXEC: u16 = 2;
const EM_386: u16 = 3;
const PT_LOAD: u32 = 1;

/// A segment to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    vaddr: u64,
    paddr: u64,
    file_size: u64,
    memory_size: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.paddr + self.memory_size
    }
}

fn invalid(rule: impl Into<String>) -> BootError {
    BootError::Invalid { format: FORMAT, rule: rule.into() }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from(u32::from_le_bytes(*b)))
}
fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

/// Loads the PT_LOAD segments at their physical addresses, RAM being zero. Returns the entry's physical address and
/// the first address above all segments.
pub fn load(kernel: &Image, ram: &GuestRam) -> Result<(u32, u64), BootError> {
    let truncated = |what, needed| BootError::Truncated { format: FORMAT, what, needed, size: kernel.size() };
    let header = kernel.head(HEADER)?;
    if header.len() < HEADER {
        return Err(truncated("the ELF header", HEADER as u64));
    }
    if !header.starts_with(b"\x7fELF") {
        return Err(invalid("no ELF magic, and the multiboot header has no address fields (flag 16)"));
    }
    if (header[4], header[5], half(&header, 18)) != (1, 1, EM_386) {
        return Err(invalid("not a 32-bit little-endian i386 file; multiboot kernels for Bulkhead are i386"));
    }
    if half(&header, 16) != ET_EXEC {
        return Err(invalid("not an executable (e_type 2); link it at a fixed address"));
    }
    let segments = segments(kernel, &header, ram, truncated)?;
    for s in &segments {
        kernel.copy_to(ram, s.offset, s.file_size, s.paddr)?;
    }
    let entry = word(&header, 24);
    // e_entry is a virtual address: kernels linked high give physical load addresses apart.
    let home = segments.iter().find(|s| (s.vaddr..s.vaddr + s.memory_size).contains(&entry));
    let entry = home.map_or(entry, |s| entry - s.vaddr + s.paddr);
    if !segments.iter().any(|s| (s.paddr..s.end()).contains(&entry)) {
        return Err(invalid(format!("its entry {entry:#x} lies in no segment")));
    }
    Ok((entry as u32, segments.iter().map(Segment::end).max().unwrap_or(0)))
}

/// The segments to load, each checked against the file, RAM and the others.
fn segments(
    kernel: &Image,
    header: &[u8],
    ram: &GuestRam,
    truncated: impl Fn(&'static str, u64) -> BootError,
) -> Result<Vec<Segment>, BootError> {
    let (offset, entry_size, count) = (word(header, 28), half(header, 42) as usize, half(header, 44) as usize);
    if !(PROGRAM_HEADER..=256).contains(&entry_size) || !(1..=MAX_SEGMENTS).contains(&count) {
        return Err(invalid(format!(
            "{count} program headers of {entry_size} bytes: between 1 and {MAX_SEGMENTS} of at least 32 are needed"
        )));
    }
    let mut table = vec![0; entry_size * count];
    if offset + table.len() as u64 > kernel.size() {
        return Err(truncated("the program header table", offset + table.len() as u64));
    }
    kernel.read(offset, &mut table)?;
    let mut found: Vec<Segment> = Vec::new();
    for p in table.chunks_exact(entry_size).filter(|p| word(p, 0) == u64::from(PT_LOAD)) {
        let s = Segment {
            offset: word(p, 4),
            vaddr: word(p, 8),
            paddr: word(p, 12),
            file_size: word(p, 16),
            memory_size: word(p, 20),
        };
        if s.memory_size == 0 {
            continue;
        }
        if s.file_size > s.memory_size {
            return Err(invalid(format!("a segment at {:#x} with more bytes in the file than in memory", s.paddr)));
        }
        if s.offset + s.file_size > kernel.size() {
            return Err(truncated("a segment", s.offset + s.file_size));
        }
        layout::check("a kernel segment", s.paddr, s.end(), ram)?;
        if found.iter().any(|o| s.paddr < o.end() && o.paddr < s.end()) {
            let what = "a kernel segment".into();
            return Err(BootError::Overlap { what, start: s.paddr, end: s.end(), over: "another segment" });
        }
        found.push(s);
    }
    if found.is_empty() { Err(invalid("no segment to load")) } else { Ok(found) }
}
