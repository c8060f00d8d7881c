#!/usr/bin/env python3
"""Trains the demo model from nothing and writes its folder; needs PyTorch, and a GPU to be done in minutes.

    python3 tools/train-demo/train.py --out FOLDER --minutes 9

Everything it learns from is made up as it goes, from --seed (data.py, facts.py). The model is examined on questions that were kept
back, computing exactly what the stored weights will compute, and stored once a minute; training-log.json tells how it went.
"""
import argparse
import json
import multiprocessing
import os
import random
import shutil
import time

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "../../crates/bitnet-cli/demo-model")
MOST_TOKENS = 128  # of an answer in an examination
EXAMINATION = 40  # seconds kept for the last one


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything, compilation and examinations included")
    parser.add_argument("--steps", type=int, help="train so many steps, however long that takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of a step")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 2)), help="processes that make text")
    parser.add_argument("--examine", type=int, default=500, help="questions of a subject in the last examination")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between examinations")
    parser.add_argument("--eager", action="store_true", help="do without torch.compile")
    for name, default in (("hidden", 384), ("layers", 6), ("heads", 6), ("kv-heads", 3), ("ffn", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def kind(seed, index):
    """Tokens of a row of batch `index`: one or two questions, or a long conversation."""
    return 96 if random.Random(f"kind {seed} {index}").random() < 0.65 else 1024


def produce(queue, args, first, step):
    """Makes batches `first`, `first + step`, ...: the text does not depend on how many processes make it."""
    import data
    import encoding

    encoder = encoding.Encoder(os.path.join(DEMO, "tokenizer.json"))
    index = first
    while True:
        length = kind(args.seed, index)
        queue.put(data.batch(encoder, args.seed, index, max(1, args.tokens // length), length))
        index += step


def examine(shape, stored, encoder, subjects):
    """The share of right answers, by subject, and a few wrong ones."""
    import model

    shares, wrong = {}, {}
    for subject, questions in subjects.items():
        prompts = [encoder.prompt([("User", question)]) for question, _ in questions]
        answers = [encoder.decode(ids) for ids in model.greedy(shape, stored, prompts, encoder.end_of_turn, MOST_TOKENS)]
        misses = [(q, a[:160]) for (q, right), a in zip(questions, answers) if a != right]
        shares[subject] = round(1 - len(misses) / len(questions), 4)
        wrong[subject] = misses[:3]
    return shares, wrong


def main():
    args = parse()
    began = time.time()
    os.makedirs(args.out, exist_ok=True)
    # Before anything touches the GPU: a forked process must not have used it.
    fork = multiprocessing.get_context("fork")
    queues = [fork.Queue(6) for _ in range(args.workers)]
    for i, queue in enumerate(queues):
        fork.Process(target=produce, args=(queue, args, i, args.workers), daemon=True).start()

    import torch

    import data
    import encoding
    import export
    import model

    encoder = encoding.Encoder(os.path.join(DEMO, "tokenizer.json"))
    shape = model.Shape(
        encoder.size, hidden=args.hidden, layers=args.layers, heads=args.heads, kv_heads=args.kv_heads, ffn=args.ffn
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    params = model.initial(shape, args.seed, device)
    matrices = [params[name] for name in shape.matrices()]
    others = [p for name, p in params.items() if name not in shape.matrices()]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    everything = matrices + others

    def loss_of(ids, labels):
        logits = model.forward(shape, params, ids, torch.bfloat16)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=data.IGNORE)

    run = loss_of
    if device == "cuda" and not args.eager:
        run = torch.compile(loss_of, dynamic=False)

    def batch(index):
        ids, labels = (torch.from_numpy(a) for a in queues[index % args.workers].get())
        if device == "cuda":
            ids, labels = ids.pin_memory(), labels.pin_memory()
        return ids.to(device, non_blocking=True).long(), labels.to(device, non_blocking=True).long()

    def say(**what):
        what = {"seconds": round(time.time() - began, 1), **what}
        log.append(what)
        print(json.dumps(what), flush=True)
        export.write_json(os.path.join(args.out, "training-log.json"), log)

    log = []
    # Both lengths of row once, so that the schedule of the learning rate begins after compilation.
    for length in (96, 1024):
        ids = torch.zeros(max(1, args.tokens // length), length, dtype=torch.long, device=device)
        try:
            run(ids, ids).backward()
        except Exception as error:  # whatever is missing for compilation, training goes on without it
            if run is loss_of:
                raise
            say(compilation_failed=repr(error)[:2000])
            run = loss_of
            run(ids, ids).backward()
    for p in everything:
        p.grad = None
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    count = sum(p.numel() for p in matrices)
    dense = sum(p.numel() for p in others)
    say(device=gpu, torch=torch.__version__, compiled=run is not loss_of, ternary=count, dense=dense, args=vars(args))

    few = data.examinations(min(100, args.examine), seed=5)
    few = {k: few[k][: args.examine] for k in ("additions", "subtractions, any words", "words backwards", "project")}
    start = examined = shown = time.time()
    finish = max(start + 1, began + 60 * args.minutes - EXAMINATION)
    step, tokens, losses = 0, 0, []
    while True:
        progress = step / args.steps if args.steps else (time.time() - start) / (finish - start)
        if progress >= 1:
            break
        # Linear decay; as for BitNet, no weight decay in the second half, when the ternary values are to settle.
        lr = args.lr * min(1.0, (step + 1) / 300) * (1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.param_groups[0]["weight_decay"] = 0.1 if progress < 0.5 else 0.0
        ids, labels = batch(step)
        loss = run(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + ids.numel()
        losses.append(loss.detach())
        if step % 20 == 0 and time.time() - shown > 10 or step == 1:
            say(step=step, tokens=tokens, lr=round(lr, 6), loss=round(torch.stack(losses).mean().item(), 5))
            losses, shown = [], time.time()
        if time.time() - examined > args.every:
            stored = model.finished(shape, params)
            export.write_folder(args.out, shape, encoder, stored)
            shares, _ = examine(shape, stored, encoder, few)
            say(step=step, examination=shares)
            examined = time.time()

    stored = model.finished(shape, params)
    export.write_folder(args.out, shape, encoder, stored)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(DEMO, name), args.out)
    trained = round(time.time() - start, 1)
    mean = round(torch.stack(losses).mean().item(), 5) if losses else None
    say(step=step, tokens=tokens, loss=mean, trained_seconds=trained)
    last = {k: v[: args.examine] for k, v in data.examinations(args.examine).items()}
    shares, wrong = examine(shape, stored, encoder, last)
    say(step=step, examination=shares, questions={k: len(v) for k, v in last.items()}, wrong=wrong)


if __name__ == "__main__":
    main()
