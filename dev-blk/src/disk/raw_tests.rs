//! What files do differently from each other, and what is done about it.

use std::io::Write;

use super::*;

fn raw(content: &[u8], direct: Option<Alignment>) -> (Raw, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    (Raw::new(file.reopen().unwrap(), direct).unwrap(), file)
}

#[test]
fn pieces_are_whole_blocks_that_fit() {
    let at = |offset, left| Piece::at(offset, left, 4096, 8192);
    assert_eq!(at(4096, 4096), Piece { start: 4096, span: 4096, skip: 0, used: 4096 });
    assert_eq!(at(4608, 512), Piece { start: 4096, span: 4096, skip: 512, used: 512 });
    assert_eq!(at(4608, 9000), Piece { start: 4096, span: 8192, skip: 512, used: 7680 });
    assert_eq!(at(7680, 1024), Piece { start: 4096, span: 8192, skip: 3584, used: 1024 });
    assert_eq!(at(0, 100_000), Piece { start: 0, span: 8192, skip: 0, used: 8192 });
}

#[test]
fn parts_of_a_block_are_replaced_without_harm_to_the_rest() {
    let content: Vec<u8> = (0..32_768).map(|at| (at / 512) as u8).collect();
    // The rules of a medium with blocks of 4096 bytes; the file itself would take anything.
    let (raw, file) = raw(&content, Some(Alignment { memory: 4096, offset: 4096 }));
    assert_eq!(raw.block(), 4096);
    let mut scratch = Scratch::default();
    raw.write_pieces(3 * 512, 7 * 512, &mut scratch, |at, bytes| bytes.fill(100 + (at > 0) as u8)).unwrap();
    raw.write_pieces(40 * 512, 512, &mut scratch, |_, bytes| bytes.fill(102)).unwrap();
    let mut expected = content;
    expected[3 * 512..10 * 512].fill(100);
    expected[40 * 512..41 * 512].fill(102);
    assert!(std::fs::read(file.path()).unwrap() == expected);
}

#[test]
fn discarding_keeps_the_size_and_reads_zero_on_a_file() {
    let (raw, file) = raw(&[7; 16_384], None);
    raw.discard(4096, 8192).unwrap();
    raw.discard(0, 0).unwrap();
    let content = std::fs::read(file.path()).unwrap();
    assert_eq!((content.len(), content[4095], content[12_288]), (16_384, 7, 7));
    assert!(content[4096..12_288].iter().all(|byte| *byte == 0));
}

/// A taken-over process must not fill the host's disk, so zeroing asks for nothing that could; on a file it keeps the size.
#[test]
fn zeroing_keeps_the_size_and_the_rest_of_a_file() {
    for unmap in [false, true] {
        let (raw, file) = raw(&[7; 16_384], None);
        raw.write_zeroes(12_288, 4096, unmap, &mut Scratch::default()).unwrap();
        raw.write_zeroes(512, 512, unmap, &mut Scratch::default()).unwrap();
        let mut expected = vec![7; 16_384];
        expected[12_288..].fill(0);
        expected[512..1024].fill(0);
        assert!(std::fs::read(file.path()).unwrap() == expected, "unmap {unmap}");
    }
}
