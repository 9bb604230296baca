use super::super::image::test_files::image;
use super::*;
use crate::boot::Payload;

fn header(flags: u32) -> Vec<u8> {
    [HEADER_MAGIC, flags, 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags)]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect()
}

/// An ELF kernel with one segment: 0x1000 bytes of file at offset 0x1000, 0x3000 in memory at `paddr`.
fn elf_kernel(paddr: u32) -> Vec<u8> {
    let mut file = vec![0u8; 0x2000];
    file[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    let mut put = |at: usize, v: u32| file[at..at + 4].copy_from_slice(&v.to_le_bytes());
    put(16, 3 << 16 | 2);
    put(24, 0xc010_0010);
    put(28, 52);
    put(40, 32 << 16 | 52);
    put(44, 1);
    for (i, v) in [1, 0x1000, 0xc010_0000, paddr, 0x1000, 0x3000, 5, 0x1000].into_iter().enumerate() {
        put(52 + 4 * i, v);
    }
    file[0x100..0x10c].copy_from_slice(&header(PAGE_ALIGN | MEMORY_INFO));
    file[0x1010] = 0xf4;
    file
}

fn load_file(kernel: &[u8], initrd: Option<&[u8]>, ram: &GuestRam) -> Result<Entry, BootError> {
    Payload::identify(image("kernel", kernel), initrd.map(|b| image("initrd", b)), "root=x".into())?.load(ram)
}

#[test]
fn elf_is_loaded_with_module_and_map() {
    let ram = GuestRam::new(16 << 20).unwrap();
    let entry = load_file(&elf_kernel(0x10_0000), Some(b"module"), &ram).unwrap();
    assert_eq!((entry.eip, entry.eax), (0x10_0010, LOADER_MAGIC));
    assert_eq!(ram.read_u32(0x10_0010), Some(0xf4));
    let info = |at: u64| ram.read_u32(u64::from(entry.ebx) + at).unwrap();
    assert_eq!((info(0), info(4), info(8)), (INFO_FLAGS, 639, 15 << 10));
    assert_eq!(info(20), 1, "one module");
    let module = u64::from(info(24));
    let (start, end) = (ram.read_u32(module).unwrap(), ram.read_u32(module + 4).unwrap());
    assert_eq!((start & 0xfff, end - start), (0, 6));
    let first = u64::from(info(48));
    assert_eq!((info(44) % 24, ram.read_u32(first), ram.read_u32(first + 20)), (0, Some(20), Some(RAM)));
}

#[test]
fn address_fields_are_honoured() {
    let mut file = vec![0u8; 0x40];
    file.extend(header(ADDRESS_FIELDS));
    for v in [0x20_0040u32, 0x20_0000, 0, 0x20_8000, 0x20_0060] {
        file.extend(v.to_le_bytes());
    }
    file.resize(0x200, 0x90);
    let ram = GuestRam::new(16 << 20).unwrap();
    let entry = load_file(&file, None, &ram).unwrap();
    assert_eq!(entry.eip, 0x20_0060);
    assert_eq!(ram.read_u32(0x20_01fc), Some(0x9090_9090));
    let mut bad = file.clone();
    bad[0x40 + 16..][..4].copy_from_slice(&0xffff_0000u32.to_le_bytes());
    assert!(load_file(&bad, None, &ram).is_err(), "load_addr above header_addr");
}

#[test]
fn hostile_segments_are_refused() {
    let ram = GuestRam::new(16 << 20).unwrap();
    for paddr in [0u32, 0x400, 0x8_f000, 0xa_0000, 0xff_f000, 0xffff_f000] {
        assert!(load_file(&elf_kernel(paddr), None, &ram).is_err(), "{paddr:#x}");
    }
    let patched = |at: usize, v: u32| {
        let mut k = elf_kernel(0x10_0000);
        k[at..at + 4].copy_from_slice(&v.to_le_bytes());
        load_file(&k, None, &ram)
    };
    assert!(matches!(patched(28, 0xffff_fff0), Err(BootError::Truncated { .. })), "program headers outside");
    assert!(matches!(patched(56, 0xffff_0000), Err(BootError::Truncated { .. })), "segment offset outside");
    assert!(patched(68, 0xffff_ffff).is_err(), "file size absurd");
    assert!(patched(72, 0xffff_ffff).is_err(), "memory size absurd");
    assert!(patched(44, 0xffff).is_err(), "too many headers");
    assert!(patched(40, 0).is_err(), "header size zero");
    assert!(patched(24, 0x1234).is_err(), "entry nowhere");
}

#[test]
fn unsupported_wishes_are_named() {
    let text = Header::find(&header(VIDEO_MODE)).unwrap_err().to_string();
    assert!(text.contains("video mode"), "{text}");
    assert!(Header::find(&header(1 << 7)).is_err());
    let mut wrong = header(0);
    wrong[8] ^= 1;
    assert_eq!(Header::find(&wrong).unwrap(), None, "a bad checksum is no header");
    let mut late = vec![0; SEARCH_LIMIT - 4];
    late.extend(header(0));
    assert_eq!(Header::find(&late).unwrap(), None, "past the search limit");
}
