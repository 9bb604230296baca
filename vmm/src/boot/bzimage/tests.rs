use super::super::image::test_files::image;
use super::*;
use crate::boot::Payload;

/// A kernel of 4 setup sectors and `pages` × 4 KiB of protected-mode code, relocatable, preferring 16 MiB.
pub fn kernel(pages: usize) -> Vec<u8> {
    let mut file = vec![0u8; 5 * 512];
    file[field::SETUP_SECTS] = 4;
    file[field::SYSSIZE..][..4].copy_from_slice(&(pages as u32 * 256).to_le_bytes());
    file[field::BOOT_FLAG..][..2].copy_from_slice(&0xaa55u16.to_le_bytes());
    file[field::JUMP_LENGTH] = 0x66;
    file[field::HEADER..][..4].copy_from_slice(b"HdrS");
    file[field::VERSION..][..2].copy_from_slice(&0x20fu16.to_le_bytes());
    file[field::LOADFLAGS] = LOADED_HIGH;
    file[field::INITRD_ADDR_MAX..][..4].copy_from_slice(&0x37ff_ffffu32.to_le_bytes());
    file[field::KERNEL_ALIGNMENT..][..4].copy_from_slice(&0x100_0000u32.to_le_bytes());
    file[field::RELOCATABLE] = 1;
    file[field::CMDLINE_SIZE..][..4].copy_from_slice(&2047u32.to_le_bytes());
    file[field::PREF_ADDRESS..][..8].copy_from_slice(&0x100_0000u64.to_le_bytes());
    file[field::INIT_SIZE..][..4].copy_from_slice(&0x20_0000u32.to_le_bytes());
    file.extend((0..pages * 4096).map(|i| (i / 4096) as u8 + 1));
    file
}

fn load_with(kernel: &[u8], initrd: Option<&[u8]>, line: &str, ram: &GuestRam) -> Result<Entry, BootError> {
    let initrd = initrd.map(|b| image("initrd", b));
    Payload::identify(image("kernel", kernel), initrd, line.into())?.load(ram)
}

#[test]
fn everything_is_where_boot_params_says() {
    let ram = GuestRam::new(64 << 20).unwrap();
    let entry = load_with(&kernel(3), Some(&[0x5a; 5000]), "console=ttyS0", &ram).unwrap();
    assert_eq!((entry.eip, entry.esi), (0x100_0000, layout::ZERO_PAGE as u32));
    assert_eq!(ram.read_u32(0x100_2ffc), Some(0x0303_0303));
    let zero = |at: usize| ram.read_u32(layout::ZERO_PAGE + at as u64).unwrap();
    let initrd = u64::from(zero(field::RAMDISK_IMAGE));
    assert_eq!((initrd, zero(field::RAMDISK_SIZE)), ((64 << 20) - 8192, 5000));
    assert_eq!(ram.read_u32(initrd + 4996), Some(0x5a5a_5a5a));
    assert_eq!(zero(field::HEADER), u32::from_le_bytes(*b"HdrS"));
    let mut line = [0; 14];
    assert!(ram.read(u64::from(zero(field::CMD_LINE_PTR)), &mut line));
    assert_eq!(&line, b"console=ttyS0\0");
}

#[test]
fn initrd_honours_its_ceiling() {
    let ram = GuestRam::new(2 << 30).unwrap();
    load_with(&kernel(1), Some(&[1; 4097]), "", &ram).unwrap();
    assert_eq!(ram.read_u32(layout::ZERO_PAGE + field::RAMDISK_IMAGE as u64), Some(0x3800_0000 - 8192));
}

#[test]
fn small_memory_is_an_error_that_says_how_much() {
    let ram = GuestRam::new(16 << 20).unwrap();
    let error = load_with(&kernel(1), None, "", &ram).unwrap_err().to_string();
    assert!(error.contains("at least 18 MiB"), "{error}");
    let ram = GuestRam::new(18 << 20).unwrap();
    assert!(matches!(load_with(&kernel(1), Some(&[1; 100]), "", &ram), Err(BootError::InitrdNoRoom { .. })));
}

#[test]
fn long_command_lines_are_refused() {
    let ram = GuestRam::new(64 << 20).unwrap();
    assert!(load_with(&kernel(1), None, &"x".repeat(2047), &ram).is_ok());
    assert!(matches!(
        load_with(&kernel(1), None, &"x".repeat(2048), &ram),
        Err(BootError::CommandLineLong { limit: 2047, .. })
    ));
    assert!(matches!(load_with(&kernel(1), None, "a\0b", &ram), Err(BootError::CommandLineNul)));
}

#[test]
fn every_truncation_is_an_error() {
    let whole = kernel(1);
    let ram = GuestRam::new(64 << 20).unwrap();
    // Up to 15 bytes may be missing at the end: the header counts in paragraphs.
    let end = whole.len() - 16;
    for length in (1..end).step_by(61).chain([0x1ff, 0x201, 0x207, 0x211, 0x263, end]) {
        assert!(load_with(&whole[..length], None, "", &ram).is_err(), "{length} bytes");
    }
}

#[test]
fn absurd_fields_are_errors_and_never_panic() {
    let ram = GuestRam::new(64 << 20).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut k = kernel(1);
        k[at..at + bytes.len()].copy_from_slice(bytes);
        load_with(&k, Some(&[1; 10]), "", &ram)
    };
    assert!(matches!(with(field::SYSSIZE, &[0xff; 4]), Err(BootError::Truncated { .. })));
    assert!(matches!(with(field::SYSSIZE, &[0; 4]), Err(BootError::Truncated { .. })));
    assert!(with(field::SETUP_SECTS, &[255]).is_err());
    assert!(with(field::INIT_SIZE, &[0xff; 4]).is_err());
    assert!(with(field::PREF_ADDRESS, &[0xff; 8]).is_err());
    assert!(with(field::LOADFLAGS, &[0]).unwrap_err().to_string().contains("zImage"));
    assert!(with(field::VERSION, &[0, 2]).unwrap_err().to_string().contains("2.04"));
    assert!(with(field::INITRD_ADDR_MAX, &[0; 4]).is_err());
    with(field::KERNEL_ALIGNMENT, &[0; 4]).unwrap();
    with(field::JUMP_LENGTH, &[0xff]).unwrap();
}

#[test]
fn random_damage_never_panics() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::SmallRng::seed_from_u64(2);
    let ram = GuestRam::new(32 << 20).unwrap();
    for _ in 0..300 {
        let mut k = kernel(1);
        for _ in 0..4 {
            let at = rng.random_range(0x1f1..0x290);
            k[at] = rng.random();
        }
        let _ = load_with(&k, Some(&[1; 10]), "x", &ram);
    }
}
