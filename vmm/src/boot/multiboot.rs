//! Multiboot 1 (Multiboot Specification 0.6.96): how small and test kernels are booted.

use super::layout::{self, MULTIBOOT_INFO};
use super::memory_map::{self, RAM};
use super::{BootError, Entry, Image, elf};
use crate::mmu::GuestRam;

const FORMAT: &str = "multiboot";
/// The header lies wholly within this many bytes, on a 4-byte boundary (§3.1).
pub const SEARCH_LIMIT: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at entry.
const LOADER_MAGIC: u32 = 0x2bad_b002;

/// Header flags: modules page-aligned, memory information, video mode, address fields.
const PAGE_ALIGN: u32 = 1 << 0;
const MEMORY_INFO: u32 = 1 << 1;
const VIDEO_MODE: u32 = 1 << 2;
const ADDRESS_FIELDS: u32 = 1 << 16;
/// Flags that a loader must understand or refuse.
const REQUIRED: u32 = 0xffff;

/// Information flags: mem_*, cmdline, mods_*, mmap_*, boot_loader_name.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const NAME: &[u8] = b"Bulkhead\0";
const MODULE_NAME: &[u8] = b"initrd\0";

/// Offsets of the parts within [`MULTIBOOT_INFO`]'s page.
const MODULES: u64 = 0x100;
const STRINGS: u64 = 0x180;
const MEMORY_MAP: u64 = 0x200;

/// The image's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset of the header in the file.
    offset: u64,
    /// Present if the image says itself where to load it; else it must be ELF.
    addresses: Option<Addresses>,
}

/// The address fields: all physical (§3.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

fn invalid(rule: String) -> BootError {
    BootError::Invalid { format: FORMAT, rule }
}

impl Header {
    /// Searches the file's first bytes. None if there is no header; an error if it asks for what is not supported.
    pub fn find(head: &[u8]) -> Result<Option<Self>, BootError> {
        let head = &head[..head.len().min(SEARCH_LIMIT)];
        let word = |at: usize| head.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b));
        for at in (0..head.len()).step_by(4) {
            let (Some(HEADER_MAGIC), Some(flags), Some(checksum)) = (word(at), word(at + 4), word(at + 8)) else {
                continue;
            };
            if HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) != 0 {
                continue;
            }
            Self::check_flags(flags)?;
            let mut addresses = None;
            if flags & ADDRESS_FIELDS != 0 {
                let field =
                    |i: usize| word(at + 12 + 4 * i).ok_or_else(|| invalid("the address fields are cut off".into()));
                addresses = Some(Addresses {
                    header: field(0)?,
                    load: field(1)?,
                    load_end: field(2)?,
                    bss_end: field(3)?,
                    entry: field(4)?,
                });
            }
            return Ok(Some(Self { offset: at as u64, addresses }));
        }
        Ok(None)
    }

    fn check_flags(flags: u32) -> Result<(), BootError> {
        if flags & VIDEO_MODE != 0 {
            let what = "a video mode (multiboot header flag 2); this board has no display controller";
            return Err(BootError::NotSupported(what.into()));
        }
        match flags & REQUIRED & !(PAGE_ALIGN | MEMORY_INFO) {
            0 => Ok(()),
            unknown => Err(BootError::NotSupported(format!("unknown required multiboot flags {unknown:#x}"))),
        }
    }
}

/// Lays out kernel, module and boot information.
pub fn load(
    header: &Header,
    kernel: &Image,
    initrd: Option<&Image>,
    command_line: &str,
    ram: &GuestRam,
) -> Result<Entry, BootError> {
    let (entry, end) = match header.addresses {
        Some(addresses) => load_flat(header.offset, addresses, kernel, ram)?,
        None => elf::load(kernel, ram)?,
    };
    let module = match initrd {
        Some(initrd) => {
            let start = layout::place_initrd(initrd.size(), end, ram.low_size())?;
            initrd.copy_to(ram, 0, initrd.size(), start)?;
            Some((start, start + initrd.size()))
        }
        None => None,
    };
    layout::write_command_line(command_line, layout::COMMAND_LINE_ROOM, ram)?;
    write_information(module, ram)?;
    Entry::write_gdt(ram)?;
    Ok(Entry { eip: entry, eax: LOADER_MAGIC, ebx: MULTIBOOT_INFO as u32, ..Entry::default() })
}

/// Loads by the header's address fields. Returns the entry and the first address above the image.
fn load_flat(offset: u64, a: Addresses, kernel: &Image, ram: &GuestRam) -> Result<(u32, u64), BootError> {
    let before = u64::from(a.header)
        .checked_sub(u64::from(a.load))
        .filter(|b| *b <= offset)
        .ok_or_else(|| invalid(format!("header_addr {:#x} does not fit load_addr {:#x}", a.header, a.load)))?;
    let start = offset - before;
    let length = match u64::from(a.load_end) {
        0 => kernel.size() - start,
        end => end
            .checked_sub(u64::from(a.load))
            .ok_or_else(|| invalid(format!("load_end_addr {end:#x} is below load_addr {:#x}", a.load)))?,
    };
    if start + length > kernel.size() {
        let (needed, size) = (start + length, kernel.size());
        return Err(BootError::Truncated { format: FORMAT, what: "the part between load addresses", needed, size });
    }
    let loaded = u64::from(a.load) + length;
    let end = loaded.max(u64::from(a.bss_end));
    layout::check("the kernel", u64::from(a.load), end, ram)?;
    if !(u64::from(a.load)..loaded).contains(&u64::from(a.entry)) {
        return Err(invalid(format!("entry_addr {:#x} lies outside the loaded image", a.entry)));
    }
    kernel.copy_to(ram, start, length, u64::from(a.load))?;
    Ok((a.entry, end))
}

/// Writes the information structure, the module list and the memory map (§3.3).
fn write_information(module: Option<(u64, u64)>, ram: &GuestRam) -> Result<(), BootError> {
    let mut page = vec![0u8; 0x400];
    let put = |page: &mut [u8], at: u64, value: u32| {
        page[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
    };
    let name_at = STRINGS + MODULE_NAME.len() as u64;
    page[STRINGS as usize..][..MODULE_NAME.len()].copy_from_slice(MODULE_NAME);
    page[name_at as usize..][..NAME.len()].copy_from_slice(NAME);
    let map = memory_map::regions(ram);
    for (i, r) in map.iter().enumerate() {
        let at = MEMORY_MAP + 24 * i as u64;
        put(&mut page, at, 20);
        put(&mut page, at + 4, r.start as u32);
        put(&mut page, at + 8, (r.start >> 32) as u32);
        put(&mut page, at + 12, r.size as u32);
        put(&mut page, at + 16, (r.size >> 32) as u32);
        put(&mut page, at + 20, r.kind);
    }
    let upper = map.iter().find(|r| r.kind == RAM && r.start == layout::HIGH_START).map_or(0, |r| r.size >> 10);
    let fields = [
        (0, INFO_FLAGS),
        (4, (layout::EBDA >> 10) as u32),
        (8, upper as u32),
        (16, layout::COMMAND_LINE as u32),
        (20, u32::from(module.is_some())),
        (24, (MULTIBOOT_INFO + MODULES) as u32),
        (44, 24 * map.len() as u32),
        (48, (MULTIBOOT_INFO + MEMORY_MAP) as u32),
        (64, (MULTIBOOT_INFO + name_at) as u32),
    ];
    for (at, value) in fields {
        put(&mut page, at, value);
    }
    if let Some((start, end)) = module {
        put(&mut page, MODULES, start as u32);
        put(&mut page, MODULES + 4, end as u32);
        put(&mut page, MODULES + 8, (MULTIBOOT_INFO + STRINGS) as u32);
    }
    layout::write(ram, "multiboot information", MULTIBOOT_INFO, &page)
}

#[cfg(test)]
mod tests;
