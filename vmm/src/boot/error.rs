//! Why a kernel could not be put into RAM: what was expected, what was found, and what to do.

/// An error of the boot room. All of them are the operator's to fix: none is caused by a running guest.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BootError {
    #[error("looking at the {role} file")]
    Metadata { role: &'static str, source: std::io::Error },
    #[error(
        "the {role} is not a regular file: it is read at any offset, so give a file rather than a pipe or a device"
    )]
    NotRegular { role: &'static str },
    #[error("the {role} file is empty")]
    Empty { role: &'static str },
    #[error("reading {length} bytes at offset {offset} of the {role} file")]
    Read { role: &'static str, offset: u64, length: u64, source: std::io::Error },
    #[error(
        "the kernel is neither a Linux bzImage (0x55aa at offset 0x1fe and `HdrS` at 0x202) nor a multiboot image (magic \
         0x1badb002 in the first 8 KiB): found {found}, {size} bytes, beginning {magic}{hint}"
    )]
    Unrecognised { found: String, size: u64, magic: String, hint: String },
    #[error("the {format} file is cut short: {what} needs {needed} bytes, the file has {size}")]
    Truncated { format: &'static str, what: &'static str, needed: u64, size: u64 },
    #[error("the {format} file is not usable: {rule}")]
    Invalid { format: &'static str, rule: String },
    #[error("the kernel asks for something that is not supported: {0}")]
    NotSupported(String),
    #[error(
        "{what} needs guest memory at {start:#x}..{end:#x}, but RAM ends at {limit:#x}: give the VM at least {} MiB \
         (--memory)", end.div_ceil(1 << 20)
    )]
    NoRoom { what: &'static str, start: u64, end: u64, limit: u64 },
    #[error(
        "the initrd of {size} bytes does not fit between the kernel's end at {floor:#x} and {ceiling:#x}: give the VM \
         more memory (--memory) or a smaller initrd"
    )]
    InitrdNoRoom { size: u64, floor: u64, ceiling: u64 },
    #[error("{what} at {start:#x}..{end:#x} lies over {over}")]
    Overlap { what: String, start: u64, end: u64, over: &'static str },
    #[error("the command line has {length} bytes, the kernel takes at most {limit}")]
    CommandLineLong { length: usize, limit: usize },
    #[error("the command line contains a NUL byte")]
    CommandLineNul,
    #[error("{0} do not fit into the 64 KiB for firmware tables: this many processors are not supported")]
    Tables(&'static str),
}
