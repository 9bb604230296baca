use super::*;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
}

fn written(processors: u8) -> Vec<u8> {
    let ram = GuestRam::new(1 << 20).unwrap();
    write(Topology { processors }, &ram).unwrap();
    let mut bytes = vec![0; 0x1_0000];
    assert!(ram.read(layout::TABLES, &mut bytes));
    bytes
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// The table at physical address `at`, its length and checksum verified.
fn table(bytes: &[u8], at: usize) -> &[u8] {
    let at = at - layout::TABLES as usize;
    let t = &bytes[at..at + word(bytes, at + 4)];
    assert_eq!(sum(t), 0, "checksum of {:?}", &t[..4]);
    t
}

#[test]
fn acpi_tables_are_linked_and_sum_to_zero() {
    let bytes = written(1);
    let root = bytes.chunks(16).position(|c| c.starts_with(b"RSD PTR ")).unwrap() * 16;
    assert_eq!((sum(&bytes[root..root + 20]), sum(&bytes[root..root + 36])), (0, 0));
    let rsdt = table(&bytes, word(&bytes, root + 16));
    let xsdt = table(&bytes, word(&bytes, root + 24));
    assert_eq!((&rsdt[..4], &xsdt[..4]), (b"RSDT".as_slice(), b"XSDT".as_slice()));
    let names: Vec<_> = (0..3).map(|i| table(&bytes, word(rsdt, 36 + 4 * i))[..4].to_vec()).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"HPET"]);
    let wide: Vec<_> = (0..3).map(|i| word(xsdt, 36 + 8 * i)).collect();
    assert_eq!(wide, (0..3).map(|i| word(rsdt, 36 + 4 * i)).collect::<Vec<_>>());
    let fadt = table(&bytes, word(rsdt, 36));
    assert_eq!((fadt.len(), word(fadt, 36) % 64), (244, 0), "revision 3; the FACS is aligned");
    let dsdt = table(&bytes, word(fadt, 40));
    let s5 = b"\x08\\_S5_\x12";
    assert!(dsdt.windows(s5.len()).any(|w| w == s5));
    assert_eq!((fadt[116], word(fadt, 120), fadt[128]), (1, 0xcf9, 6), "reset register");
}

#[test]
fn madt_lists_every_processor() {
    let bytes = written(3);
    let at = bytes.windows(4).position(|w| w == b"APIC").unwrap() + layout::TABLES as usize;
    let madt = table(&bytes, at);
    let (mut at, mut kinds) = (44, Vec::new());
    while at < madt.len() {
        kinds.push(madt[at]);
        at += usize::from(madt[at + 1]);
    }
    assert_eq!((at, &kinds[..6]), (madt.len(), [0, 0, 0, 1, 2, 2].as_slice()));
}

#[test]
fn mp_tables_are_found_and_complete() {
    let bytes = written(2);
    let pointer = bytes.chunks(16).find(|c| c.starts_with(b"_MP_")).unwrap();
    assert_eq!(sum(pointer), 0);
    let start = word(pointer, 4) - layout::TABLES as usize;
    let length = usize::from(u16::from_le_bytes([bytes[start + 4], bytes[start + 5]]));
    let t = &bytes[start..start + length];
    assert_eq!((&t[..4], sum(t)), (b"PCMP".as_slice(), 0));
    let (mut at, mut count) = (44, 0u16);
    while at < t.len() {
        at += if t[at] == 0 { 20 } else { 8 };
        count += 1;
    }
    assert_eq!((at, count), (t.len(), u16::from_le_bytes([t[34], t[35]])));
}

#[test]
fn bios_data_names_the_serial_port_and_the_ebda() {
    let ram = GuestRam::new(1 << 20).unwrap();
    write(Topology { processors: 1 }, &ram).unwrap();
    assert_eq!(ram.read_u32(0x400).unwrap() & 0xffff, 0x3f8);
    assert_eq!(ram.read_u32(0x40c).unwrap() >> 16, 0x9fc0);
    assert_eq!(ram.read_u32(0x410).unwrap() >> 24, 639 & 0xff);
}

/// Writes the tables where `BULKHEAD_TABLES` says, for a look with `iasl -d`.
#[test]
fn tables_can_be_dumped() {
    let Some(to) = std::env::var_os("BULKHEAD_TABLES") else { return };
    let bytes = written(1);
    for name in [b"DSDT", b"FACP", b"APIC", b"HPET"] {
        let at = bytes.chunks(16).position(|c| c.starts_with(name)).unwrap() * 16;
        let path = std::path::Path::new(&to).join(String::from_utf8_lossy(name).to_lowercase() + ".dat");
        std::fs::write(path, table(&bytes, at + layout::TABLES as usize)).unwrap();
    }
}
