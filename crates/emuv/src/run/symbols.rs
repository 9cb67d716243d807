//! The names of functions at places in files, for a report: from the files' own symbol tables, once the program has ended. In
//! the program itself to look for them would cost time and wait for libraries that are being opened. Files are foreign bytes.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
};

/// A table of more bytes is not read.
const MOST_BYTES: u64 = 256 << 20;

/// Bytes of a name that are read.
const NAME_BYTES: usize = 512;

/// Sections that are looked at.
const MOST_SECTIONS: u64 = 4096;

const SYMTAB: u32 = 2;
const DYNSYM: u32 = 11;
const FUNCTION: u8 = 2;
const SYMBOL_BYTES: usize = 24;
const SECTION_BYTES: usize = 64;

/// The tables of the files that were asked for so far.
#[derive(Debug, Default)]
pub struct Symbols(HashMap<String, Option<Table>>);

impl Symbols {
    /// The function at a place in a file; `None`: the file is not there (in a container, say), or names none there.
    pub fn name(&mut self, file: &str, offset: u64) -> Option<String> {
        let table = self.0.entry(file.to_owned()).or_insert_with(|| Table::read(file));
        table.as_ref()?.name(offset).map(|name| readable(&name))
    }
}

/// A file's table of symbols.
#[derive(Debug)]
struct Table {
    symbols: Vec<u8>,
    names: Vec<u8>,
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn part(file: &File, at: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).ok().filter(|_| length <= MOST_BYTES)?];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

impl Table {
    fn read(path: &str) -> Option<Self> {
        // The program says which file it is: it may be one that waits for a writer.
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .ok()?;
        let length = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
        let within = |at: u64, bytes: u64| at.checked_add(bytes).is_some_and(|end| end <= length);
        let header = part(&file, 0, 64)?;
        // 64 bits, little-endian.
        if !header.starts_with(b"\x7fELF\x02\x01") || number(&header, 58, 2)? != SECTION_BYTES as u64 {
            return None;
        }
        let (start, count) = (number(&header, 40, 8)?, number(&header, 60, 2)?.min(MOST_SECTIONS));
        let sections = part(&file, start, count * SECTION_BYTES as u64)?;
        let section = |at: usize| sections.get(at * SECTION_BYTES..(at + 1) * SECTION_BYTES);
        let of_kind = |kind: u32| {
            let mut all = sections.chunks_exact(SECTION_BYTES);
            all.find(|section| number(section, 4, 4) == Some(u64::from(kind)))
        };
        let extent = |section: &[u8]| Some((number(section, 24, 8)?, number(section, 32, 8)?));
        // The first has all functions, where it was not stripped; the second those that others may call.
        let table = of_kind(SYMTAB).or_else(|| of_kind(DYNSYM))?;
        let names = section(usize::try_from(number(table, 40, 4)?).ok()?)?;
        let (table, names) = (extent(table)?, extent(names)?);
        if !within(table.0, table.1) || !within(names.0, names.1) {
            return None;
        }
        Some(Self { symbols: part(&file, table.0, table.1)?, names: part(&file, names.0, names.1)? })
    }

    fn name(&self, offset: u64) -> Option<String> {
        let is_there = |symbol: &&[u8]| {
            let function = symbol.get(4).is_some_and(|info| info & 15 == FUNCTION);
            let extent = number(symbol, 8, 8).zip(number(symbol, 16, 8));
            function && extent.is_some_and(|(start, bytes)| offset >= start && offset - start < bytes)
        };
        let symbol = self.symbols.chunks_exact(SYMBOL_BYTES).find(is_there)?;
        let name = self.names.get(usize::try_from(number(symbol, 0, 4)?).ok()?..)?;
        let end = name.iter().take(NAME_BYTES).position(|byte| *byte == 0).unwrap_or(name.len().min(NAME_BYTES));
        let name = String::from_utf8_lossy(name.get(..end)?).into_owned();
        (!name.is_empty()).then_some(name)
    }
}

/// Of a C++ name the parts that are plain words; what has none stays as it is.
fn readable(symbol: &str) -> String {
    let Some(mut rest) = symbol.strip_prefix("_Z") else { return symbol.to_owned() };
    rest = rest.trim_start_matches('L');
    if let Some(nested) = rest.strip_prefix('N') {
        rest = nested.trim_start_matches(['K', 'V', 'R', 'O']);
    }
    let mut words = Vec::new();
    loop {
        rest = rest.strip_prefix("St").inspect(|_| words.push("std")).unwrap_or(rest);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Ok(length) = rest[..digits].parse::<usize>() else { break };
        let Some(word) = rest.get(digits..digits.saturating_add(length)) else { break };
        words.push(if word.starts_with("_GLOBAL__N") { "(anonymous)" } else { word });
        rest = &rest[digits + length..];
        if symbol.as_bytes().get(2) != Some(&b'N') {
            break;
        }
    }
    if words.is_empty() { symbol.to_owned() } else { words.join("::") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cpp_become_words_as_far_as_they_are_plain() {
        let cases = [
            ("main", "main"),
            ("_Z7computePfm", "compute"),
            ("_ZN3c104cuda20CUDACachingAllocator6mallocEPPvmP11CUstream_st", "c10::cuda::CUDACachingAllocator::malloc"),
            ("_ZNSt6vectorIfSaIfEE9push_backEOf", "std::vector"),
            ("_ZNK5Model4loadEv", "Model::load"),
            ("_ZN12_GLOBAL__N_14findEv", "(anonymous)::find"),
            ("_ZplRK1AS1_", "_ZplRK1AS1_"),
            ("_Z99x", "_Z99x"),
            ("_Z", "_Z"),
        ];
        for (symbol, words) in cases {
            assert_eq!(readable(symbol), words);
        }
    }

    #[test]
    fn whatever_stands_in_a_file_nothing_worse_follows_than_that_it_has_no_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let whole = std::fs::read("/bin/true").unwrap();
        let sections = usize::try_from(number(&whole, 40, 8).unwrap()).unwrap();
        let mut state = 7_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random(4) {
                let at = if random(2) == 0 { random(64) } else { sections + random(whole.len() - sections) };
                bytes[at] = u8::try_from(random(256)).unwrap();
            }
            bytes.truncate(whole.len() - if random(4) == 0 { random(whole.len()) } else { 0 });
            std::fs::write(&path, bytes).unwrap();
            let mut symbols = Symbols::default();
            (0..4).for_each(|_| drop(symbols.name(path.to_str().unwrap(), random(1 << 16) as u64)));
        }
    }

    #[test]
    fn what_is_no_file_of_code_has_no_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let exe = std::fs::read("/proc/self/exe").unwrap();
        for bytes in [&b""[..], b"\x7fELF\x02\x01", &exe[..200]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(Table::read(path.to_str().unwrap()).is_none());
        }
        assert!(Table::read("/dev/zero").is_none() && Table::read("/no/such/file").is_none());
    }
}
