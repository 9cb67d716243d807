//! A program with everything resolved that does not depend on where its data lies.

use std::collections::BTreeMap;

use super::Op;

/// When a work touches a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// The work's number.
    pub work: u32,
    /// What the chunk held before was nobody's.
    pub fresh: bool,
}

/// A chunk from when it is mapped until it is unmapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptChunk {
    /// Where it lies in the arena.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
    /// In order.
    pub uses: Vec<Use>,
    /// From this work on what it holds is the same whenever it leaves VRAM.
    pub constant_from: Option<u32>,
}

/// A work.
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptWork {
    /// Numbers of the chunks that it touches, each once.
    pub chunks: Vec<u32>,
    /// The offsets that it names.
    pub named: Vec<u64>,
    /// See [`super::GpuWork`].
    pub micros: f64,
    /// See [`super::GpuWork`].
    pub issue_us: f64,
    /// See [`super::GpuWork`].
    pub kind: u64,
    /// See [`super::GpuWork`].
    pub everything: bool,
    /// See [`super::GpuWork`].
    pub slowness: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Map(u32),
    Unmap(u32),
    Allocate { offset: u64, bytes: u64 },
    Free { offset: u64 },
    Work(u32),
    Round,
}

/// See the module's head.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    /// By number.
    pub chunks: Vec<ScriptChunk>,
    /// By number, in order.
    pub works: Vec<ScriptWork>,
    /// For each round, the number of its first work.
    pub rounds: Vec<u32>,
    pub(super) steps: Vec<Step>,
}

impl Script {
    /// Resolves a program.
    pub fn new(ops: &[Op]) -> Self {
        let mut script = Self::default();
        let mut now = Now::default();
        for op in ops {
            let step = match op {
                Op::Map { offset, bytes } => {
                    let chunk = number(script.chunks.len());
                    script.chunks.push(ScriptChunk {
                        offset: *offset,
                        bytes: *bytes,
                        uses: Vec::new(),
                        constant_from: None,
                    });
                    now.chunks.insert(*offset, (chunk, *bytes));
                    now.dead.push(true);
                    Step::Map(chunk)
                }
                Op::Unmap { offset } => match now.chunks.remove(offset) {
                    Some((chunk, _)) => Step::Unmap(chunk),
                    None => continue,
                },
                Op::Allocate { offset, bytes } => {
                    now.extents.insert(*offset, *bytes);
                    script.nobodys(now.nobodys(*offset, *bytes));
                    Step::Allocate { offset: *offset, bytes: *bytes }
                }
                Op::Constant { offset } => {
                    let from = number(script.works.len());
                    let bytes = now.extents.get(offset).copied().unwrap_or(0);
                    for chunk in now.within(*offset, bytes) {
                        script.chunks[chunk as usize].constant_from = Some(from);
                    }
                    continue;
                }
                Op::Free { offset } => {
                    let Some(bytes) = now.extents.remove(offset) else { continue };
                    script.nobodys(now.nobodys(*offset, bytes));
                    Step::Free { offset: *offset }
                }
                Op::Round => {
                    script.rounds.push(number(script.works.len()));
                    Step::Round
                }
                Op::Work(work) => {
                    let index = number(script.works.len());
                    let mut chunks: Vec<u32> = work.chunks.iter().flat_map(|named| now.resolve(*named)).collect();
                    chunks.sort_unstable();
                    chunks.dedup();
                    for &chunk in &chunks {
                        let fresh = std::mem::take(&mut now.dead[chunk as usize]);
                        script.chunks[chunk as usize].uses.push(Use { work: index, fresh });
                    }
                    script.works.push(ScriptWork {
                        chunks,
                        named: work.chunks.clone(),
                        micros: work.micros,
                        issue_us: work.issue_us,
                        kind: work.kind,
                        everything: work.everything,
                        slowness: work.slowness,
                    });
                    Step::Work(index)
                }
            };
            script.steps.push(step);
        }
        script
    }

    fn nobodys(&mut self, chunks: Vec<u32>) {
        chunks.into_iter().for_each(|chunk| self.chunks[chunk as usize].constant_from = None);
    }

    /// The most memory that was mapped at once, in bytes.
    pub fn peak_mapped_bytes(&self) -> u64 {
        let (mut mapped, mut peak) = (0, 0);
        for step in &self.steps {
            match step {
                Step::Map(chunk) => mapped += self.chunks[*chunk as usize].bytes,
                Step::Unmap(chunk) => mapped -= self.chunks[*chunk as usize].bytes,
                _ => {}
            }
            peak = peak.max(mapped);
        }
        peak
    }
}

#[derive(Default)]
struct Now {
    /// Offset -> number, size.
    chunks: BTreeMap<u64, (u32, u64)>,
    /// Offset -> size.
    extents: BTreeMap<u64, u64>,
    dead: Vec<bool>,
}

impl Now {
    fn within(&self, offset: u64, bytes: u64) -> Vec<u32> {
        self.chunks.range(offset..offset + bytes).map(|(_, (chunk, _))| *chunk).collect()
    }

    fn nobodys(&mut self, offset: u64, bytes: u64) -> Vec<u32> {
        let chunks = self.within(offset, bytes);
        chunks.iter().for_each(|chunk| self.dead[*chunk as usize] = true);
        chunks
    }

    /// What an offset names: all of the allocation that it lies in, or else its chunk.
    fn resolve(&self, named: u64) -> Vec<u32> {
        let around = self.extents.range(..=named).next_back().filter(|(start, bytes)| named < *start + *bytes);
        if let Some((start, bytes)) = around {
            return self.within(*start, *bytes);
        }
        let chunk = self.chunks.range(..=named).next_back().filter(|(start, (_, bytes))| named < *start + *bytes);
        chunk.map(|(_, (chunk, _))| *chunk).into_iter().collect()
    }
}

/// There are never as many.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
