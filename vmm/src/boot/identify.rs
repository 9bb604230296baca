//! What a file that cannot be booted seems to be: the operator learns what was found and what to give instead.

use super::BootError;

/// The error for a kernel file that no loader here knows. `head` are its first bytes.
pub fn unrecognised(head: &[u8], size: u64) -> BootError {
    let (found, hint) = guess(head);
    let magic = head.iter().take(8).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    let hint = if hint.is_empty() { String::new() } else { format!("; {hint}") };
    BootError::Unrecognised { found: found.into(), size, magic, hint }
}

const VMLINUZ: &str = "give the kernel's vmlinuz (arch/x86/boot/bzImage)";
const INITRD: &str = "is this the initrd? The kernel goes into --kernel";

/// A description and a remedy.
fn guess(head: &[u8]) -> (&'static str, &'static str) {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(0, b"\x7fELF") {
        return elf(head);
    }
    if at(0x202, b"HdrS") {
        return ("a Linux kernel image whose boot signature is damaged", "copy the file again");
    }
    if at(0x38, b"ARMd") || at(0x38, b"ARM\x64") {
        return ("an arm64 Linux Image", "a 32-bit x86 kernel is needed");
    }
    if at(0x24, &0x016f_2818u32.to_le_bytes()) {
        return ("an ARM Linux zImage", "a 32-bit x86 kernel is needed");
    }
    const MAGICS: [(&[u8], &str, &str); 12] = [
        (b"\x1f\x8b", "a gzip file", "unpack it first, or is this the initrd?"),
        (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first, or is this the initrd?"),
        (b"\xfd7zXZ\0", "an xz file", "unpack it first, or is this the initrd?"),
        (b"BZh", "a bzip2 file", "unpack it first"),
        (b"\x04\x22\x4d\x18", "an lz4 file", "unpack it first, or is this the initrd?"),
        (b"070701", "a cpio archive", INITRD),
        (b"070702", "a cpio archive", INITRD),
        (b"QFI\xfb", "a qcow2 disk image", "a kernel is needed, not a disk"),
        (b"!<arch>\n", "a Debian package or ar archive", "unpack it (dpkg -x) and give boot/vmlinuz-*"),
        (b"\xd6\x50\x52\xe8", "a multiboot 2 image", "only multiboot 1 is supported"),
        (b"#!", "a script", VMLINUZ),
        (b"MZ", "a PE executable (EFI application)", "an EFI-only image cannot be booted here"),
    ];
    for (magic, found, hint) in MAGICS {
        if at(0, magic) {
            return (found, hint);
        }
    }
    if head.chunks_exact(8).any(|c| c.starts_with(&0xe852_50d6u32.to_le_bytes())) {
        return ("a multiboot 2 image", "only multiboot 1 is supported");
    }
    if at(510, b"\x55\xaa") {
        return ("a boot sector or disk image", "a kernel is needed, not a disk");
    }
    ("no format known here", VMLINUZ)
}

/// ELF by class and machine (System V gABI, figure 4-3).
fn elf(head: &[u8]) -> (&'static str, &'static str) {
    let machine = head.get(18..20).map_or(0, |m| u16::from_le_bytes([m[0], m[1]]));
    match (head.get(4), machine) {
        (Some(1), 3) => ("an i386 ELF file without a multiboot header", VMLINUZ),
        (Some(2), 62) => ("an x86-64 ELF file", "the guest is 32-bit: an i386 kernel is needed"),
        (_, 183) => ("an arm64 ELF file", "an i386 kernel is needed"),
        (_, 40) => ("an ARM ELF file", "an i386 kernel is needed"),
        (_, 243) => ("a RISC-V ELF file", "an i386 kernel is needed"),
        _ => ("an ELF file for another machine", "an i386 kernel is needed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_was_found() {
        let mut elf64 = b"\x7fELF\x02\x01\x01".to_vec();
        elf64.resize(64, 0);
        elf64[18] = 62;
        let text = unrecognised(&elf64, 64).to_string();
        assert!(text.contains("x86-64 ELF") && text.contains("64 bytes") && text.contains("7f 45 4c 46"), "{text}");
        assert!(unrecognised(b"\x1f\x8b\x08", 3).to_string().contains("gzip"));
        let mut arm64 = vec![0; 64];
        arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert!(unrecognised(&arm64, 64).to_string().contains("arm64"));
        assert!(unrecognised(b"x", 1).to_string().contains("beginning 78"));
    }
}
