//! Puts an operating system into RAM, as firmware and a boot loader would, and sets the processor up to enter it.
//!
//! The machine room opens nothing: it hands over [`Image`]s made from descriptors it was given. [`Payload::identify`]
//! reads the kernel's first bytes and says what it is, or explains what it seems to be instead; [`Payload::load`] lays
//! everything out in RAM, which must be zero, and returns the [`Entry`] to start at. Both can be called again for a
//! reboot. Sizes, offsets and addresses in a kernel file are hostile: each is checked before use, and no copy is larger
//! than the file or reaches outside RAM.
//!
//! What goes where below 1 MiB is in [`layout`]; the memory map that every protocol reports is in [`memory_map`];
//! [`tables`] writes what firmware would have left behind (ACPI, MP tables, BIOS data area).

mod bzimage;
mod elf;
mod entry;
mod error;
mod identify;
mod image;
mod layout;
mod memory_map;
mod multiboot;
mod zero_page;

pub mod tables;

pub use entry::Entry;
pub use error::BootError;
pub use image::Image;

use crate::mmu::GuestRam;

/// A kernel with what goes along.
#[derive(Debug)]
pub struct Payload {
    kernel: Image,
    initrd: Option<Image>,
    command_line: String,
    format: Format,
}

/// What kind of kernel it is, with its header as read and checked.
#[derive(Clone, Debug)]
enum Format {
    Linux(bzimage::SetupHeader),
    Multiboot(multiboot::Header),
}

impl Payload {
    /// Reads the kernel's headers. Errors say what was expected and what the file seems to be.
    pub fn identify(kernel: Image, initrd: Option<Image>, command_line: String) -> Result<Self, BootError> {
        if command_line.contains('\0') {
            return Err(BootError::CommandLineNul);
        }
        let head = kernel.head(multiboot::SEARCH_LIMIT)?;
        let format = match bzimage::SetupHeader::parse(&head, kernel.size())? {
            Some(header) => Format::Linux(header),
            None => match multiboot::Header::find(&head)? {
                Some(header) => Format::Multiboot(header),
                None => return Err(identify::unrecognised(&head, kernel.size())),
            },
        };
        Ok(Self { kernel, initrd, command_line, format })
    }

    /// The boot protocol, for messages.
    pub fn protocol(&self) -> &'static str {
        match self.format {
            Format::Linux(_) => "Linux bzImage",
            Format::Multiboot(_) => "multiboot",
        }
    }

    /// Lays kernel, initrd, command line and boot information out in `ram`, which must be zero.
    pub fn load(&self, ram: &GuestRam) -> Result<Entry, BootError> {
        match &self.format {
            Format::Linux(header) => bzimage::load(header, &self.kernel, self.initrd.as_ref(), &self.command_line, ram),
            Format::Multiboot(header) => {
                multiboot::load(header, &self.kernel, self.initrd.as_ref(), &self.command_line, ram)
            }
        }
    }
}
