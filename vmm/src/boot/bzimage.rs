//! Linux bzImage by the 32-bit boot protocol (Documentation/arch/x86/boot.rst). The real-mode setup code is not run:
//! the loader reads the setup header, fills boot_params itself and enters the protected-mode part of the kernel.

use super::layout::{self, HIGH_START};
use super::zero_page::{SETUP_HEADER, SETUP_HEADER_END, ZeroPage};
use super::{BootError, Entry, Image, memory_map};
use crate::mmu::GuestRam;

const FORMAT: &str = "Linux bzImage";
const SECTOR: u64 = 512;

/// Offsets of setup header fields in the kernel file.
mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const VID_MODE: usize = 0x1fa;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP_LENGTH: usize = 0x201;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// loadflags: the protected-mode part is loaded at 1 MiB (a bzImage, not a zImage).
const LOADED_HIGH: u8 = 1 << 0;
/// "Keep the mode there is" for vid_mode.
const VID_MODE_NORMAL: u16 = 0xffff;
/// type_of_loader for a loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// Oldest protocol understood: 2.04 (Linux 2.6.14) made syssize four bytes.
const OLDEST: u16 = 0x204;

/// The setup header, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    /// The header's bytes from 0x1f1 on, as they go into boot_params.
    raw: Vec<u8>,
    /// Protocol version, for example 0x20f.
    pub version: u16,
    /// Offset of the protected-mode part in the file.
    pub payload: u64,
    /// Its length in bytes.
    pub payload_size: u64,
    /// Highest address that the initrd may occupy.
    pub initrd_addr_max: u64,
    /// Longest command line, without the NUL.
    pub cmdline_size: usize,
    /// May be loaded at any multiple of `alignment`.
    pub relocatable: bool,
    /// Alignment of a relocatable kernel.
    pub alignment: u32,
    /// Where the kernel would like to run, and by default does.
    pub pref_address: u64,
    /// Bytes that it needs from there while it unpacks itself. 0: unknown (before 2.10).
    pub init_size: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl SetupHeader {
    /// Reads the header from the file's first bytes. None if this is no Linux kernel image at all; an error if it is
    /// one that is cut short, damaged or too old. `size` is the file's.
    pub fn parse(head: &[u8], size: u64) -> Result<Option<Self>, BootError> {
        let magic = head.get(field::HEADER..field::HEADER + 4);
        if u16_at(head, field::BOOT_FLAG) != Some(0xaa55) || magic != Some(b"HdrS".as_slice()) {
            return Ok(None);
        }
        let truncated = |what, needed| BootError::Truncated { format: FORMAT, what, needed, size };
        let Some(version) = u16_at(head, field::VERSION) else {
            return Err(truncated("the setup header", SETUP_HEADER_END as u64));
        };
        if version < OLDEST {
            return Err(invalid(format!("boot protocol {}, at least 2.04 (Linux 2.6.14) is needed", dotted(version))));
        }
        let end = field::HEADER + usize::from(head[field::JUMP_LENGTH]);
        let end = end.min(SETUP_HEADER_END);
        let raw = head.get(SETUP_HEADER..end).ok_or_else(|| truncated("the setup header", end as u64))?;
        // A field past the header's end reads as absent, as the protocol version says it should be.
        let head = &head[..end];
        let absent = || invalid(format!("protocol {} but a header of only {end:#x} bytes", dotted(version)));
        if head.get(field::LOADFLAGS).ok_or_else(absent)? & LOADED_HIGH == 0 {
            return Err(invalid("a zImage, which is loaded below 1 MiB; only bzImage is supported".into()));
        }
        let setup_sects = match head[field::SETUP_SECTS] {
            0 => 4,
            n => u64::from(n),
        };
        let payload = (setup_sects + 1) * SECTOR;
        let declared = u64::from(u32_at(head, field::SYSSIZE).ok_or_else(absent)?) * 16;
        // syssize counts paragraphs, rounded up.
        if declared == 0 || payload + declared > size + 15 {
            return Err(truncated("the protected-mode kernel that its header announces", payload + declared));
        }
        let since = |version_needed, value: Option<u64>| (version >= version_needed).then_some(value).flatten();
        Ok(Some(Self {
            version,
            payload,
            payload_size: declared.min(size - payload),
            initrd_addr_max: u32_at(head, field::INITRD_ADDR_MAX).map_or(0x37ff_ffff, u64::from),
            cmdline_size: since(0x206, u32_at(head, field::CMDLINE_SIZE).map(u64::from)).map_or(255, |n| n as usize),
            relocatable: since(0x205, head.get(field::RELOCATABLE).map(|b| u64::from(*b))).is_some_and(|b| b != 0),
            alignment: u32_at(head, field::KERNEL_ALIGNMENT).unwrap_or(0),
            pref_address: since(0x20a, u64_at(head, field::PREF_ADDRESS)).unwrap_or(HIGH_START),
            init_size: since(0x20a, u32_at(head, field::INIT_SIZE).map(u64::from)).unwrap_or(0),
            raw: raw.to_vec(),
        }))
    }

    /// Memory that the kernel needs before it reads its memory map: where it runs, and where it is loaded.
    fn runs_at(&self, load: u64) -> Result<(u64, u64), BootError> {
        let start = if self.relocatable { load.max(self.pref_address) } else { self.pref_address };
        let end = start.checked_add(self.init_size.max(self.payload_size));
        match end {
            Some(end) if end <= u64::from(u32::MAX) => Ok((start, end)),
            _ => Err(invalid(format!("it wants to run at {start:#x} with {:#x} bytes", self.init_size))),
        }
    }

    /// Where to put the protected-mode part: its preferred address if it can run from there, else 1 MiB.
    fn load_address(&self, ram: &GuestRam) -> u64 {
        let aligned = self.alignment.is_power_of_two() && self.pref_address & u64::from(self.alignment - 1) == 0;
        let end = self.pref_address.saturating_add(self.init_size.max(self.payload_size));
        let fits = self.pref_address >= HIGH_START && end <= ram.low_size();
        if self.relocatable && aligned && fits { self.pref_address } else { HIGH_START }
    }
}

fn invalid(rule: String) -> BootError {
    BootError::Invalid { format: FORMAT, rule }
}

fn dotted(version: u16) -> String {
    format!("{}.{:02}", version >> 8, version & 0xff)
}

/// Lays out kernel, initrd, command line and boot_params.
pub fn load(
    header: &SetupHeader,
    kernel: &Image,
    initrd: Option<&Image>,
    command_line: &str,
    ram: &GuestRam,
) -> Result<Entry, BootError> {
    let at = header.load_address(ram);
    let (run_start, run_end) = header.runs_at(at)?;
    layout::check("the kernel file", at, at.saturating_add(header.payload_size), ram)?;
    layout::check("the kernel while it unpacks itself", run_start, run_end, ram)?;
    layout::write_command_line(command_line, header.cmdline_size, ram)?;
    kernel.copy_to(ram, header.payload, header.payload_size, at)?;

    let mut page = ZeroPage::new(&header.raw);
    if let Some(initrd) = initrd {
        let ceiling = header.initrd_addr_max.saturating_add(1).min(ram.low_size());
        let floor = run_end.max(at + header.payload_size);
        let start = layout::place_initrd(initrd.size(), floor, ceiling)?;
        initrd.copy_to(ram, 0, initrd.size(), start)?;
        page.set_u32(field::RAMDISK_IMAGE, start as u32);
        page.set_u32(field::RAMDISK_SIZE, initrd.size() as u32);
    }
    page.set_u16(field::VID_MODE, VID_MODE_NORMAL);
    page.set_u8(field::TYPE_OF_LOADER, LOADER_UNDEFINED);
    page.set_u32(field::CODE32_START, at as u32);
    page.set_u32(field::CMD_LINE_PTR, layout::COMMAND_LINE as u32);
    page.set_memory_map(&memory_map::regions(ram));
    layout::write(ram, "boot_params", layout::ZERO_PAGE, page.bytes())?;
    Entry::write_gdt(ram)?;
    Ok(Entry { eip: at as u32, esi: layout::ZERO_PAGE as u32, ..Entry::default() })
}

#[cfg(test)]
mod tests;
