//! The Python functions that a thread is in, read from the interpreter's structures.
//!
//! They are read and not asked for: the thread has as a rule given the interpreter's lock away before it calls CUDA (PyTorch
//! does), and to take it here could wait for ever. A thread that is in native code changes none of its own frames, and
//! what they lead to (code objects, their names) does not change and lives as long as they do. Should it be otherwise, what is read is
//! wrong, and no more: [`Memory::read`] says no where there is nothing.
//!
//! The structures differ from version to version. 3.13 says itself where their fields are; for 3.11 and 3.12 it is known, and
//! does not change within those. Of other versions nothing is read.

use emuv_state::PythonFrame;

/// The process's own memory.
pub(super) trait Memory {
    /// Reads what is there; `None`: not all of it can be read.
    fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]>;

    /// The same of any length.
    fn bytes(&self, address: u64, length: usize) -> Option<Vec<u8>>;

    fn word(&self, address: u64) -> Option<u64> {
        self.read(address).map(u64::from_ne_bytes)
    }
}

/// Frames that are passed over at most, besides those that are kept.
const MOST_STEPS: usize = 64;

/// Bytes of a code object's table of lines that are read: few functions have more.
const MOST_TABLE_BYTES: u64 = 1 << 16;

/// Words that are read of what 3.13 says of itself.
const TOLD_WORDS: usize = 71;

/// Letters of a name.
const MOST_LETTERS: u64 = 1024;

/// Where fields are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// From the thread's state to its current frame, and, if there is one, of a structure in between.
    current_frame: u64,
    through: Option<u64>,
    /// Of a frame.
    code: u64,
    previous: u64,
    instruction: u64,
    owner: u64,
    /// Of a code object.
    file: u64,
    name: u64,
    table: u64,
    first_line: u64,
    instructions: u64,
    /// Of `bytes`.
    bytes_length: u64,
    bytes_data: u64,
    /// Of `str`.
    text_state: u64,
    text_length: u64,
    ascii_data: u64,
}

const PYTHON_3_11: Layout = Layout {
    current_frame: 56,
    through: Some(8),
    code: 32,
    previous: 48,
    instruction: 56,
    owner: 69,
    file: 112,
    name: 128,
    table: 136,
    first_line: 72,
    instructions: 184,
    bytes_length: 16,
    bytes_data: 32,
    text_state: 32,
    text_length: 16,
    ascii_data: 48,
};

const PYTHON_3_12: Layout = Layout {
    through: Some(0),
    code: 0,
    previous: 8,
    owner: 70,
    first_line: 68,
    instructions: 192,
    ascii_data: 40,
    ..PYTHON_3_11
};

/// The frame belongs to the interpreter's own native code.
const OWNED_BY_NATIVE_CODE: u8 = 3;

impl Layout {
    /// That of a version (`PY_VERSION_HEX`); `runtime` is where `_PyRuntime` lies.
    pub fn of(version: u32, runtime: u64, memory: &impl Memory) -> Option<Self> {
        match version >> 16 {
            0x030b => Some(PYTHON_3_11),
            0x030c => Some(PYTHON_3_12),
            0x030d => Self::told(version, &memory.read(runtime)?),
            _ => None,
        }
    }

    /// What 3.13 says at the beginning of its `_PyRuntime`, word by word (`_Py_DebugOffsets`).
    fn told(version: u32, table: &[u8; 8 * TOLD_WORDS]) -> Option<Self> {
        let word = |at: usize| table.get(8 * at..8 * at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        if !table.starts_with(b"xdebugpy") || word(1)? != u64::from(version) {
            return None;
        }
        // Whatever it says is added to an address: nothing of these is large.
        let offset = |at: usize| word(at).filter(|offset| *offset < 1 << 16);
        Some(Self {
            current_frame: offset(23)?,
            through: None,
            previous: offset(29)?,
            code: offset(30)?,
            instruction: offset(31)?,
            owner: offset(33)?,
            file: offset(35)?,
            name: offset(37)?,
            table: offset(38)?,
            first_line: offset(39)?,
            instructions: offset(43)?,
            bytes_length: offset(65)?,
            bytes_data: offset(66)?,
            text_state: offset(68)?,
            text_length: offset(69)?,
            ascii_data: offset(70)?,
        })
    }
}

/// A function that is running: its code object, and the instruction at which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Running {
    pub code: u64,
    pub instruction: u64,
}

/// Finds the functions that the thread with this state is in, the innermost first, and says how many.
pub(super) fn running(layout: &Layout, thread_state: u64, memory: &impl Memory, into: &mut [Running]) -> usize {
    let mut frame = memory.word(at(thread_state, layout.current_frame));
    if let (Some(through), Some(structure)) = (layout.through, frame) {
        frame = memory.word(at(structure, through));
    }
    let mut count = 0;
    for _ in 0..MOST_STEPS {
        let Some(here) = frame.filter(|frame| *frame != 0) else { break };
        let Some(to) = into.get_mut(count) else { break };
        // One read for all of it.
        let Some(fields) = memory.read::<80>(here) else { break };
        let word = |offset: u64| {
            let start = usize::try_from(offset).ok()?;
            fields.get(start..start.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes)
        };
        let owner = usize::try_from(layout.owner).ok().and_then(|owner| fields.get(owner));
        let (Some(code), Some(instruction), Some(owner)) = (word(layout.code), word(layout.instruction), owner) else {
            break;
        };
        if *owner < OWNED_BY_NATIVE_CODE {
            *to = Running { code, instruction };
            count += 1;
        }
        frame = word(layout.previous);
    }
    count
}

fn at(address: u64, offset: u64) -> u64 {
    address.wrapping_add(offset)
}

/// What a function that is running is called, and where in its file it is.
pub(super) fn name(layout: &Layout, running: Running, memory: &impl Memory) -> Option<PythonFrame> {
    let field = |offset: u64| memory.word(at(running.code, offset));
    let text = |offset: u64| text(layout, field(offset)?, memory);
    let first_line = memory.read(at(running.code, layout.first_line)).map(u32::from_ne_bytes)?;
    let steps = running.instruction.checked_sub(at(running.code, layout.instructions)).map(|bytes| bytes / 2);
    let line = || {
        let table = field(layout.table)?;
        let length = memory.word(at(table, layout.bytes_length))?.min(MOST_TABLE_BYTES);
        let table = memory.bytes(at(table, layout.bytes_data), usize::try_from(length).ok()?)?;
        line_at(&table, first_line, steps?)
    };
    Some(PythonFrame { file: text(layout.file)?, line: line().unwrap_or(0), function: text(layout.name)? })
}

/// A `str`, of which at most so many letters are read.
fn text(layout: &Layout, string: u64, memory: &impl Memory) -> Option<String> {
    let state = memory.read(at(string, layout.text_state)).map(u32::from_ne_bytes)?;
    let length = usize::try_from(memory.word(at(string, layout.text_length))?.min(MOST_LETTERS)).ok()?;
    let (bytes_each, is_compact, is_ascii) = ((state >> 2) & 7, state & 0x20 != 0, state & 0x40 != 0);
    if !is_compact {
        return None;
    }
    // Behind what there is of a `str` of ASCII stand two words more.
    let data = at(string, layout.ascii_data + if is_ascii { 0 } else { 16 });
    let letters = memory.bytes(data, length * bytes_each as usize)?;
    let letter = |bytes: &[u8]| {
        let number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
        char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    matches!(bytes_each, 1 | 2 | 4).then(|| letters.chunks(bytes_each as usize).map(letter).collect())
}

/// The line of an instruction, by a code object's table: entries of so many instructions each, with the difference of their
/// line to that of the one before (PEP 626, and `Objects/locations.md` of CPython 3.11 and later).
fn line_at(table: &[u8], first_line: u32, instruction: u64) -> Option<u32> {
    let (mut line, mut start, mut rest) = (i64::from(first_line), 0, table.iter().copied());
    loop {
        let head = rest.next()?;
        let kind = (head >> 3) & 15;
        let has_line = kind != 15;
        match kind {
            // A signed difference, and behind it (14 only) three numbers more.
            13 | 14 => {
                let number = number(&mut rest)?;
                let magnitude = i64::try_from(number >> 1).ok()?;
                line = line.checked_add(if number & 1 == 1 { -magnitude } else { magnitude })?;
                if kind == 14 {
                    (0..3).try_for_each(|_| self::number(&mut rest).map(drop))?;
                }
            }
            10..=12 => {
                line += i64::from(kind) - 10;
                rest.nth(1)?;
            }
            15 => {}
            _ => {
                rest.next()?;
            }
        }
        start += u64::from(head & 7) + 1;
        if instruction < start {
            return u32::try_from(line).ok().filter(|_| has_line);
        }
    }
}

/// A number in pieces of six bits, the lowest first.
fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let piece = bytes.next()?;
        number |= u64::from(piece & 63) << shift;
        shift += 6;
        if piece & 64 == 0 {
            return Some(number);
        }
        if shift > 54 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory in which every word is a place that was written, or nothing.
    #[derive(Default)]
    struct Written(std::collections::BTreeMap<u64, u8>);

    impl Written {
        fn write(&mut self, address: u64, bytes: &[u8]) {
            self.0.extend((address..).zip(bytes.iter().copied()));
        }
        fn put(&mut self, address: u64, value: u64) {
            self.write(address, &value.to_ne_bytes());
        }
    }

    impl Memory for Written {
        fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
            self.bytes(address, N)?.try_into().ok()
        }
        fn bytes(&self, address: u64, length: usize) -> Option<Vec<u8>> {
            (0..length as u64).map(|at| self.0.get(&address.checked_add(at)?).copied()).collect()
        }
    }

    const STATE: u64 = 0x1000;
    const CODE: u64 = 0x8000;

    fn string(memory: &mut Written, layout: &Layout, address: u64, text: &str) {
        let is_ascii = text.is_ascii();
        let each: usize = if is_ascii { 1 } else { 2 };
        let state = u32::try_from(each << 2).unwrap() | 0x20 | if is_ascii { 0x40 } else { 0 };
        memory.put(address + layout.text_length, text.chars().count() as u64);
        memory.write(address + layout.text_state, &state.to_ne_bytes());
        for (number, letter) in text.chars().enumerate() {
            let bytes = (letter as u32).to_le_bytes();
            let data = address + layout.ascii_data + if is_ascii { 0 } else { 16 };
            memory.write(data + (number * each) as u64, &bytes[..each]);
        }
    }

    /// A function at its tenth instruction, called from native code that a function at its first one has called.
    fn stack(layout: &Layout) -> Written {
        let mut memory = Written::default();
        let first = if let Some(through) = layout.through {
            memory.put(STATE + layout.current_frame, 0x2000);
            0x2000 + through
        } else {
            STATE + layout.current_frame
        };
        memory.put(first, 0x3000);
        for (frame, previous, owner, code, step) in
            [(0x3000, 0x4000, 0, CODE, 10), (0x4000, 0x5000, 3, 0, 0), (0x5000, 0, 1, CODE, 0)]
        {
            memory.write(frame, &[0; 80]);
            memory.put(frame + layout.previous, previous);
            memory.put(frame + layout.code, code);
            memory.put(frame + layout.instruction, code + layout.instructions + 2 * step);
            memory.write(frame + layout.owner, &[owner]);
        }
        memory.put(CODE + layout.file, 0xa000);
        memory.put(CODE + layout.name, 0xb000);
        memory.put(CODE + layout.table, 0xc000);
        memory.write(CODE + layout.first_line, &7_u32.to_ne_bytes());
        string(&mut memory, layout, 0xa000, "/home/me/train.py");
        string(&mut memory, layout, 0xb000, "Modèle.vorwärts");
        // Eight instructions of line 7 (short), eight of 7 + 2 (a difference), eight of 9 - 4.
        let table = [0x80 | 7, 0, 0x80 | 12 << 3 | 7, 1, 2, 0x80 | 13 << 3 | 7, 0b1001];
        memory.put(0xc000 + layout.bytes_length, table.len() as u64);
        memory.write(0xc000 + layout.bytes_data, &table);
        memory
    }

    #[test]
    fn the_functions_that_a_thread_is_in_have_their_names_and_lines() {
        for layout in [PYTHON_3_11, PYTHON_3_12, Layout { through: None, ..PYTHON_3_12 }] {
            let memory = stack(&layout);
            let mut seen = [Running::default(); 8];
            assert_eq!(running(&layout, STATE, &memory, &mut seen), 2);
            let frame = |line| {
                let (file, function) = ("/home/me/train.py".into(), "Modèle.vorwärts".into());
                Some(PythonFrame { file, line, function })
            };
            assert_eq!(name(&layout, seen[0], &memory), frame(9));
            assert_eq!(name(&layout, seen[1], &memory), frame(7));
            assert_eq!(running(&layout, STATE, &memory, &mut seen[..1]), 1, "no more than there is room for");
        }
    }

    #[test]
    fn whatever_is_missing_nothing_worse_follows_than_that_it_is_not_known() {
        let whole = stack(&PYTHON_3_12);
        for gone in whole.0.keys().step_by(3) {
            let mut memory = Written(whole.0.clone());
            memory.0.remove(gone);
            let mut seen = [Running::default(); 8];
            let count = running(&PYTHON_3_12, STATE, &memory, &mut seen);
            seen[..count].iter().for_each(|running| drop(name(&PYTHON_3_12, *running, &memory)));
        }
        let mut circle = stack(&PYTHON_3_12);
        circle.put(0x4000 + PYTHON_3_12.previous, 0x4000);
        assert_eq!(running(&PYTHON_3_12, STATE, &circle, &mut [Running::default(); 8]), 1);
    }

    #[test]
    fn lines_are_found_in_tables_of_every_kind_of_entry() {
        // Long: a difference of 70 (in two pieces), and three numbers; none; no column, back by one.
        let table = [0x80 | 14 << 3, 0x40 | 12, 2, 0, 1, 1, 0x80 | 15 << 3, 0x80 | 13 << 3 | 1, 0b11];
        let lines: Vec<_> = (0..5).map(|at| line_at(&table, 10, at)).collect();
        assert_eq!(lines, [Some(80), None, Some(79), Some(79), None]);
        for end in 0..table.len() {
            assert!(line_at(&table[..end], 10, 3).is_none(), "cut at {end}");
        }
        assert_eq!(
            line_at(&[0x80 | 13 << 3, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 1], 1, 0),
            None
        );
    }

    #[test]
    fn versions_whose_structures_are_not_known_are_left_alone() {
        let mut memory = Written::default();
        assert_eq!(Layout::of(0x030b_07f0, 0, &memory), Some(PYTHON_3_11));
        for version in [0x0209_12f0, 0x030a_0df0, 0x030e_00f0, 0] {
            assert_eq!(Layout::of(version, 0, &memory), None);
        }
        let words = (0..TOLD_WORDS as u64).flat_map(u64::to_ne_bytes).collect::<Vec<_>>();
        memory.write(0x100, &words);
        assert_eq!(Layout::of(0x030d_00f0, 0x100, &memory), None, "it does not say that it says it");
        memory.write(0x100, b"xdebugpy");
        memory.put(0x108, 0x030d_00f0);
        assert_eq!(Layout::of(0x030d_00f0, 0x100, &memory).map(|layout| layout.instructions), Some(43));
        memory.put(0x100 + 8 * 43, 1 << 40);
        assert_eq!(Layout::of(0x030d_00f0, 0x100, &memory), None);
    }
}
