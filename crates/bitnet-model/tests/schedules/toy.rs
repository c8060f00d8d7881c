//! A back end whose logits are a function of the text that it finds in its pages: a token in the wrong place, or one that nobody
//! wrote, shows at once.

use std::collections::VecDeque;
use std::path::Path;

use bitnet_layout::draw::uniform;
use bitnet_model::{
    Backend, Batch, Checkpoint, Decoder, Error, KvType, Result, Sampler, Spec, Start, Want, WeightSource,
};

/// Tokens of its vocabulary.
pub(crate) const VOCAB: usize = 60;
/// A text that begins with this token makes the model compute what is no number.
pub(crate) const POISON: u32 = 59;

/// The back end.
pub(crate) struct Toy {
    spec: Spec,
    /// By page, the tokens computed there.
    cells: Vec<Vec<Option<u32>>>,
    logits: Vec<f32>,
    loop_: Option<Loop>,
    /// Steps until one fails, and whether it is the only one.
    pub(crate) fails_after: Option<usize>,
    pub(crate) recovers: bool,
    /// Steps until one panics.
    pub(crate) panics_after: Option<usize>,
    /// Tokens of each step.
    pub(crate) steps: Vec<usize>,
}

/// Decoding without the host.
#[derive(Default)]
struct Loop {
    seats: Vec<Option<Seat>>,
    lookahead: usize,
    unread: VecDeque<Vec<(usize, Result<u32>)>>,
}

struct Seat {
    pages: Vec<u32>,
    id: u32,
    pos: usize,
    sampler: Sampler,
}

impl Toy {
    /// With `n_pages` pages of `page` positions, and `seats` seats of a device that decodes by itself.
    pub(crate) fn new(page: usize, n_pages: usize, max_batch: usize, seats: usize) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/bitnet-bf16");
        let mut config = Checkpoint::open(folder).unwrap().config().clone();
        config.vocab = VOCAB;
        config.eos = vec![5];
        Self {
            spec: Spec {
                config,
                name: "toy".to_owned(),
                page,
                n_pages,
                max_seqs: 64,
                context: 48,
                max_batch,
                kv_type: KvType::Bf16,
                head_bytes: 0,
                memory_bytes: 0,
                weight_bytes: 0,
                kv_bytes: 0,
            },
            cells: vec![vec![None; page]; n_pages],
            logits: Vec::new(),
            loop_: (seats > 0).then(|| Loop {
                seats: (0..seats).map(|_| None).collect(),
                lookahead: 16,
                unread: VecDeque::new(),
            }),
            fails_after: None,
            recovers: false,
            panics_after: None,
            steps: Vec::new(),
        }
    }

    fn write(&mut self, pages: &[u32], pos: usize, id: u32) {
        let page = self.spec.page;
        self.cells[pages[pos / page] as usize][pos % page] = Some(id);
    }

    /// Logits after position `pos`: mostly a function of the last tokens, so that texts repeat themselves, and of all tokens in
    /// their lower bits.
    fn logits_at(&self, pages: &[u32], pos: usize) -> Vec<f32> {
        let page = self.spec.page;
        let id = |pos: usize| {
            let cell = self.cells[pages[pos / page] as usize][pos % page];
            cell.unwrap_or_else(|| panic!("position {pos} was never computed"))
        };
        if id(0) == POISON {
            return vec![f32::NAN; VOCAB];
        }
        let hash = (0..=pos).fold(7u64, |hash, pos| {
            (hash ^ u64::from(id(pos)))
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(11)
        });
        let next = (id(pos) * 7 + 11) % 13 + 6;
        let logit = |i: usize| {
            let noise = uniform(hash, i as u64) as f32 * 2.0;
            noise + if i == next as usize { 3.0 } else { 0.0 } + if i % 7 == 2 { 0.5 } else { 0.0 }
        };
        (0..VOCAB).map(logit).collect()
    }
}

impl Backend for Toy {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn step(&mut self, batch: &Batch, want: Want<'_>) -> Result<&[f32]> {
        self.spec.check(batch, want)?;
        if let Some(left) = &mut self.fails_after {
            if *left == 0 {
                self.fails_after.take_if(|_| self.recovers);
                return Err(Error::Device("unplugged".to_owned()));
            }
            *left -= 1;
        }
        if let Some(left) = &mut self.panics_after {
            *left = left.checked_sub(1).expect("a back end with a mistake");
        }
        for copy in batch.copies() {
            self.cells[copy.to as usize] = self.cells[copy.from as usize].clone();
        }
        let places = batch.tokens().iter().zip(batch.rows());
        for (token, &row) in places.clone() {
            self.write(batch.table(row as usize), token.pos as usize, token.id);
        }
        let places: Vec<_> = places.collect();
        self.steps.push(places.len());
        self.logits = want
            .rows()
            .iter()
            .flat_map(|&row| {
                let (token, &table) = places[row];
                self.logits_at(batch.table(table as usize), token.pos as usize)
            })
            .collect();
        Ok(&self.logits)
    }

    fn decoder(&mut self) -> Option<&mut dyn Decoder> {
        self.loop_.is_some().then_some(self as &mut dyn Decoder)
    }
}

impl Decoder for Toy {
    fn seats(&self) -> usize {
        self.loop_.as_ref().map_or(0, |l| l.seats.len())
    }

    fn lookahead(&self) -> usize {
        self.loop_.as_ref().map_or(0, |l| l.lookahead)
    }

    fn seat(&mut self, seat: usize, start: Start<'_>, sampler: &Sampler) -> Result<bool> {
        let seats = &mut self.loop_.as_mut().unwrap().seats;
        assert!(seats[seat].is_none(), "seat {seat} is taken");
        // As a device that cannot do all: it leaves some to the host.
        if sampler.sampling().temperature > 1.0 {
            return Ok(false);
        }
        seats[seat] = Some(Seat {
            pages: start.pages().to_vec(),
            id: start.token().id,
            pos: start.token().pos as usize,
            sampler: sampler.clone(),
        });
        Ok(true)
    }

    fn pages(&mut self, seat: usize, pages: &[u32]) -> Result<()> {
        let seat = self.loop_.as_mut().unwrap().seats[seat].as_mut();
        seat.expect("a seat that is taken").pages = pages.to_vec();
        Ok(())
    }

    fn leave(&mut self, seat: usize) {
        let state = self.loop_.as_mut().unwrap();
        state.seats[seat] = None;
        for step in &mut state.unread {
            step.retain(|(other, _)| *other != seat);
        }
    }

    fn ahead(&mut self, steps: usize) -> Result<()> {
        for _ in 0..steps {
            let mut state = self.loop_.take().unwrap();
            assert!(state.unread.len() < state.lookahead, "more ahead than can be");
            let mut out = Vec::new();
            for (i, seat) in state.seats.iter_mut().enumerate() {
                let Some(seat) = seat else { continue };
                assert!(seat.pos < self.spec.context, "past the context");
                self.write(&seat.pages, seat.pos, seat.id);
                let logits = self.logits_at(&seat.pages, seat.pos);
                let chosen = seat.sampler.sample(&logits);
                if let Ok(id) = chosen {
                    seat.id = id;
                    seat.sampler.accept(id);
                }
                seat.pos += 1;
                out.push((i, chosen));
            }
            assert!(!out.is_empty(), "a step of nobody");
            state.unread.push_back(out);
            self.loop_ = Some(state);
        }
        Ok(())
    }

    fn next(&mut self, out: &mut Vec<(usize, Result<u32>)>) -> Result<()> {
        let step = self.loop_.as_mut().unwrap().unread.pop_front();
        out.extend(step.expect("a step to read"));
        Ok(())
    }
}
