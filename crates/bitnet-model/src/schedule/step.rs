//! One step of the host: which tokens of whom, their logits, and what is chosen from them.

use std::panic::resume_unwind;
use std::time::Instant;

use super::choose::{Allowed, Part, choose, choose_first, find, masks};
use super::sequence::Sequence;
use super::{Drafts, FinishReason, Scheduler};
use crate::error::Result;
use crate::pages::Run;
use crate::sampler::{Logits, Need};
use crate::transformer::Want;

impl Scheduler<'_> {
    /// Computes prompts, and tokens of those that the device does not decode by itself.
    pub(super) fn compute(&mut self) {
        self.fork_answers();
        self.take_seats();
        let mut parts = self.plan();
        let mut outcome = self.hold_all(&mut parts);
        if outcome.is_ok() && !parts.is_empty() {
            outcome = self.compute_parts(&parts);
        }
        if let Err(error) = outcome {
            let ids = parts.iter().map(|part| self.running[part.at].id).collect();
            self.fail_step(ids, &error);
        }
    }

    /// How much of its text is computed by the host: a device that decodes by itself begins at the last token, and so do the answers
    /// of a request that wants several.
    fn goal(&self, sequence: &Sequence) -> usize {
        let stops_before =
            sequence.limit > 0 && (sequence.forks > 0 || (self.device.exists() && sequence.suits_device()));
        sequence.text.len() - usize::from(stops_before)
    }

    /// Divides requests whose prompt is computed into their answers.
    fn fork_answers(&mut self) {
        let most = self
            .options
            .max_running
            .clamp(1, self.backend.spec().max_seqs.max(1));
        for i in 0..self.running.len() {
            if self.running[i].forks == 0 || !self.running[i].decodes() {
                continue;
            }
            let forks = std::mem::take(&mut self.running[i].forks);
            for choice in 1..=forks {
                let original = &self.running[i];
                // Those for whom there is no room find the prompt in the cache later.
                let has_room = self.running.len() + choice <= most;
                let pages = original.pages.as_ref().filter(|_| has_room);
                let pages = pages.map(|pages| self.pages.fork(pages));
                match original.fork(choice, pages) {
                    Ok(answer) => self.running.push(answer),
                    Err(error) => {
                        let id = original.id;
                        self.fail(id, error);
                        break;
                    }
                }
            }
        }
        self.sweep();
        self.running.sort_by_key(Sequence::rank);
    }

    /// Who computes what: a token of each that decodes, then prompts, the first in rank first.
    fn plan(&mut self) -> Vec<Part> {
        let spec = self.backend.spec();
        let budget = self.options.budget.clamp(1, spec.max_batch.max(1));
        let (max_seqs, mut logit_rows) = (spec.max_seqs, spec.max_logit_rows());
        let (mut decoding, mut prompts) = (Vec::new(), Vec::new());
        for (i, sequence) in self.running.iter().enumerate() {
            if sequence.seated.is_some() || sequence.is_paused || sequence.rest() == 0 {
                continue;
            }
            if sequence.rest() == 1 && sequence.limit > 0 {
                decoding.push(i);
            } else if sequence.computed < self.goal(sequence) {
                prompts.push(i);
            }
        }
        // Who was passed over goes first.
        decoding.sort_by_key(|&i| self.running[i].served);
        let kept = match (prompts.is_empty(), budget) {
            (true, _) => 0,
            (false, 1) => usize::from(self.prompts_passed_over),
            (false, _) => (budget / 4).max(1),
        };
        decoding.truncate((budget - kept).min(max_seqs));
        let decodes = !decoding.is_empty() || self.running.iter().any(|s| s.seated.is_some());
        let mut parts: Vec<Part> = Vec::new();
        for at in decoding {
            self.running[at].served = self.stats.steps;
            parts.push(Part {
                at,
                n: 1,
                draft: Vec::new(),
                scored: 0..0,
                chooses: true,
            });
        }
        let mut room = budget - parts.len();
        if prompts.is_empty() {
            self.draft(&mut parts, room);
        } else if decodes {
            room = room.min(self.chunk());
        }
        self.prompts_passed_over = room == 0;
        for at in prompts {
            if room == 0 || parts.len() == max_seqs {
                break;
            }
            let sequence = &self.running[at];
            let n = room
                .min(self.goal(sequence) - sequence.computed)
                .min(sequence.most_with(logit_rows));
            if n == 0 {
                continue;
            }
            let scored = sequence.scores(n);
            room -= n;
            logit_rows -= scored.len();
            parts.push(Part {
                at,
                n,
                draft: Vec::new(),
                scored,
                chooses: n == sequence.rest() && sequence.limit > 0,
            });
        }
        parts
    }

    fn chunk(&self) -> usize {
        let usual = if self.device.exists() { 1024 } else { 64 };
        self.options.chunk.unwrap_or(usual).max(1)
    }

    /// Adds guesses where they pay, up to `room` of them.
    fn draft(&mut self, parts: &mut [Part], mut room: usize) {
        let mut rows = parts.len();
        let mut tokens = rows as f64;
        let mut order: Vec<(usize, f64, Vec<u32>)> = Vec::new();
        for (p, part) in parts.iter().enumerate() {
            let sequence = &mut self.running[part.at];
            let most = sequence
                .draft_max
                .min(sequence.limit - sequence.answered() - 1)
                .min(room);
            order.extend(sequence.guess(most).map(|(hits, guess)| (p, hits, guess)));
        }
        // The best guesses first.
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (p, hits, mut guess) in order {
            let most = guess.len().min(room);
            let decodes_alone = self.device.exists() && rows == 1 && self.running[parts[p].at].suits_device();
            let plain = decodes_alone.then(|| self.device_seconds()).flatten();
            let n = match self.options.drafts {
                Drafts::All => most,
                Drafts::Paying => self.pace.best(plain, tokens, rows, hits, most),
            };
            guess.truncate(n);
            parts[p].draft = guess;
            room -= n;
            rows += n;
            tokens += (1..=n as i32).map(|i| hits.powi(i)).sum::<f64>();
        }
    }

    /// Holds the pages of all parts. Those that were set back for others drop out.
    fn hold_all(&mut self, parts: &mut Vec<Part>) -> Result<()> {
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by_key(|&p| self.running[parts[p].at].rank());
        for p in order {
            let part = &mut parts[p];
            if !part.draft.is_empty() {
                let pages = self.running[part.at].pages.as_ref();
                let n = part.n + part.draft.len();
                // Nobody is set back for a guess.
                if pages.is_some_and(|pages| self.pages.reserve(pages, n).is_err()) {
                    part.draft.clear();
                }
            }
            let n = part.n + part.draft.len();
            self.hold(part.at, n)?;
        }
        parts.retain(|part| self.running[part.at].pages.is_some());
        Ok(())
    }

    fn compute_parts(&mut self, parts: &[Part]) -> Result<()> {
        let vocab = self.backend.spec().config.vocab;
        let texts: Vec<Vec<u32>> = parts
            .iter()
            .map(|part| {
                let sequence = &self.running[part.at];
                let next = &sequence.text[sequence.computed..sequence.computed + part.n];
                [next, &part.draft].concat()
            })
            .collect();
        let mut runs = Vec::with_capacity(parts.len());
        let mut rows = Vec::new();
        let mut n_tokens = 0;
        for (part, ids) in parts.iter().zip(&texts) {
            let Some(seq) = &self.running[part.at].pages else {
                continue;
            };
            runs.push(Run { seq, ids });
            rows.extend(part.scored.clone().map(|row| n_tokens + row));
            n_tokens += ids.len();
            rows.extend(n_tokens - part.n_choices()..n_tokens);
        }
        let batch = self.pages.batch(&runs)?;
        drop(runs);
        let needs = self.needs(parts);
        let want = match (rows.is_empty(), &needs) {
            (true, _) => Want::Nothing,
            (false, Some(_)) => Want::Hidden(&rows),
            (false, None) => Want::Logits(&rows),
        };
        let begun = Instant::now();
        let (backend, running) = (&mut self.backend, &mut self.running);
        let (logits, allowed) = if parts
            .iter()
            .any(|part| part.chooses && running[part.at].mask.is_some())
        {
            // What grammars allow is worked out while the device computes.
            std::thread::scope(|scope| {
                let allowed = scope.spawn(|| masks(parts, running, vocab));
                let logits = backend.step(&batch, want);
                let allowed = allowed.join();
                (logits, allowed.unwrap_or_else(|panic| resume_unwind(panic)))
            })
        } else {
            (backend.step(&batch, want), Vec::new())
        };
        let logits = logits?;
        let (logits, found) = match &needs {
            Some(needs) if !rows.is_empty() => {
                let hidden = logits.to_vec();
                (&[][..], find(backend.as_mut(), &hidden, parts, needs, &allowed)?)
            }
            _ => (logits, Vec::new()),
        };
        for best in &found {
            if best.is_whole {
                self.stats.uncertified += 1;
            } else {
                self.stats.certified += 1;
                self.stats.candidates += best.ids.len() as u64;
            }
        }
        let now = Instant::now();
        self.stats.failures = 0;
        if parts.iter().all(|part| part.n == 1 && part.chooses) {
            self.pace.measured(rows.len(), (now - begun).as_secs_f64());
        }

        // What was chosen, before anybody is told: an end changes who runs.
        let mut firsts = choose_first(parts, &mut self.running, logits, &allowed, vocab).into_iter();
        let mut ends = Vec::with_capacity(parts.len());
        let mut allowed = allowed.into_iter();
        let (mut rest, mut found) = (logits, &found[..]);
        for part in parts {
            let sequence = &mut self.running[part.at];
            let computed_before = sequence.computed;
            if sequence.answered() == 0 || part.n > 1 {
                self.stats.prompt_tokens += part.n as u64;
                self.report.prompt_tokens += part.n;
            }
            self.report.batch += part.n + part.draft.len();
            sequence.advance(part.n, now, &mut self.events);
            let allowed: Allowed = allowed.next().flatten();
            let first = firsts.next().flatten();
            let (scored, others) = rest.split_at(part.scored.len() * vocab);
            // Either there are all logits or the best.
            let (best, later) = found.split_at(part.n_choices().min(found.len()));
            let (mine, others) = others.split_at((part.n_choices() - best.len()) * vocab);
            (rest, found) = (others, later);
            let is_scored = sequence.score(scored.chunks_exact(vocab), &mut self.events);
            let end = if let Err(error) = is_scored {
                Err(error)
            } else if part.chooses {
                let best = best.iter().map(|best| match best.is_whole {
                    true => Logits::All(&best.products),
                    false => Logits::Some {
                        ids: &best.ids,
                        logits: &best.products,
                        vocab,
                    },
                });
                let rows = mine.chunks_exact(vocab).map(Logits::All).chain(best);
                choose(sequence, part, rows, allowed, first, now, &mut self.events)
            } else {
                Ok((0, None))
            };
            let end = end.map(|(accepted, end)| {
                sequence.computed += accepted;
                sequence.timings.drafted += part.draft.len();
                sequence.timings.accepted += accepted;
                self.stats.drafted += part.draft.len() as u64;
                self.stats.accepted += accepted as u64;
                let n_chosen = accepted + usize::from(part.chooses);
                self.stats.tokens += n_chosen as u64;
                self.report.tokens += n_chosen;
                end
            });
            if let Some(pages) = &sequence.pages {
                self.pages.rewind(pages, sequence.computed);
                // What is whole can be found from now on.
                if sequence.computed / self.pages.page() > computed_before / self.pages.page() {
                    self.pages.advance(pages, &[])?;
                }
            }
            if sequence.limit == 0 && sequence.rest() == 0 {
                ends.push((part.at, end.map(|_| Some(sequence.bound()))));
            } else {
                ends.push((part.at, end));
            }
        }
        for (at, end) in ends {
            self.taken(at, end);
        }
        Ok(())
    }

    /// Which logits the choices of each part depend on, where the back end can find them without the others and nobody needs all.
    fn needs(&mut self, parts: &[Part]) -> Option<Vec<Option<Need>>> {
        self.backend.certified()?;
        let vocab = self.backend.spec().config.vocab;
        let need = |part: &Part| match (part.scored.is_empty(), part.chooses) {
            (false, _) => None,
            (true, false) => Some(None),
            (true, true) => self.running[part.at].need(vocab, &part.draft).map(Some),
        };
        parts.iter().map(need).collect()
    }

    /// What follows from a token that `running[i]` has taken.
    pub(super) fn taken(&mut self, i: usize, taken: Result<Option<FinishReason>>) {
        match taken {
            Ok(None) => {}
            Ok(Some(reason)) => self.finish(i, reason),
            Err(error) => {
                let id = self.running[i].id;
                if !self.running[i].is_done {
                    self.fail(id, error);
                }
            }
        }
    }
}
