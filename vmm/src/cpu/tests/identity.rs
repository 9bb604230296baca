//! CPUID tells one story.

use super::*;

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).take_while(|b| *b != 0).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn names() {
    let v = real();
    let [max, b, c, d] = v.cpuid(0, 0);
    assert_eq!((max, text(&[b, d, c])), (0xd, "GenuineIntel".into()));
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004).flat_map(|leaf| v.cpuid(leaf, 0)).collect();
    assert_eq!(text(&brand), "Bulkhead virtual CPU");
    assert_eq!(text(&v.cpuid(0x4000_0000, 0)[1..]), "BulkheadBulk");
    assert_eq!(v.cpuid(0x8000_0008, 0)[0], 0x2024, "36 physical bits, 32 linear");
}

#[test]
fn features_follow_the_model() {
    let mut v = real();
    let edx = v.cpuid(1, 0)[3];
    assert_eq!(edx & 1 << 1, 0, "no VME");
    assert_eq!(edx & 1 << 9, 0, "no APIC on this board");
    assert_eq!(v.cpuid(0x8000_0001, 0)[3] & 1 << 29, 0, "no long mode");
    assert_ne!(v.cpuid(7, 0)[3] & 1 << 29, 0);
    v.model.set(Feature::Avx2, true);
    v.model.set(Feature::Avx, true);
    v.model.set(Feature::Xsave, false);
    assert_eq!((v.cpuid(1, 0)[2] & 1 << 28, v.cpuid(7, 0)[1] & 1 << 5), (0, 0), "AVX rests on XSAVE");
    assert_eq!(v.cpuid(0xd, 0), [0; 4]);
    v.model.set(Feature::ArchCapabilities, false);
    assert_eq!(v.cpuid(7, 0)[3] & 1 << 29, 0);
    v.state.cpl = 0;
    assert_eq!(v.rdmsr(0x10a), Err(gp(0)));
}

#[test]
fn leaves_out_of_range_show_the_highest_basic_one() {
    let v = real();
    assert_eq!(v.cpuid(0x7777, 0), v.cpuid(0xd, 0));
    assert_eq!(v.cpuid(0x8000_0009, 2), v.cpuid(0xd, 2));
    assert_eq!(v.cpuid(4, 9), [0; 4]);
    assert_eq!(v.cpuid(0xb, 0), [0, 1, 0x100, 0]);
}
