"""The verbs of the command, with their options and their help: a new verb is an entry here and a
function of that name in srpo_jax/cli/verbs.py.
"""

from __future__ import annotations

from typing import Any

from srpo_jax.command.verb import Verb

OF_VERDICTS: dict[str, tuple[Any, str]] = {
    "verdicts": ("", "name of the verdict set; needed where there are several"),
    "answers": ("", "the evaluation whose verdicts are meant, instead of those of the trees"),
}

VERBS: dict[str, Verb] = {
    "demo": Verb(
        "the whole road at laptop size, in minutes",
        "srpo demo --workdir=runs/demo",
        "One round of `srpo run` on the embedded world, in WORKDIR/round-1, the base policy's\n"
        "answers before it, and a report. It needs no download, no account and no GPU.",
        config="configs/ssui_mini.py",
        workdir="runs/demo",
        options={
            "methods": ("base,srpo", "of base,sft,sft_filtered,taught,orpo,dpo,dpo_ref,srpo"),
            "seeds": (1, "train each method so many times and print mean and spread"),
        },
        resumes=True,
    ),
    "explore": Verb(
        "sample branches from the policy",
        "srpo explore --config=configs/ssui_mini.py --workdir=runs/mini",
        "Writes WORKDIR/trees. Run the same command again to go on after an interruption.",
        options={
            "from": ("", "workdir of a run whose newest checkpoint is the policy, on model.path"),
            "references": (False, "the reference paths alone, without a branch, for a warm-up"),
            "more": (False, "more branches for judged questions that have no pair yet"),
            "verify": (False, "read finished shards in full, and make damaged ones again"),
        },
        runs=("from",),
        resumes=True,
    ),
    "pilot": Verb(
        "measure on a few questions whether the full run is worth its price",
        "srpo pilot --config=configs/ssui_mini.py --workdir=runs/mini",
        "Writes WORKDIR/pilot, with pilot.json and to_label.jsonl. Prints measures, thresholds\n"
        "and what to type next. Run the same command again to go on after an interruption.",
        options={
            "questions": (50, "so many of the training records, half of them risky"),
            "labels": ("", "JSONL of your own verdicts, as a filled-in to_label.jsonl"),
            "from": ("", "workdir of a run whose newest checkpoint is the policy, on model.path"),
            "allow_upload": (False, "pictures may be sent to another machine than this"),
        },
        runs=("from",),
        resumes=True,
    ),
    "judge": Verb(
        "have the branches judged, or the answers of an evaluation",
        "srpo judge --config=configs/ssui_mini.py --workdir=runs/mini",
        "Writes verdicts beside the trees, or scores of answers. The same command again goes on.",
        options={
            "name": ("", "of the verdict set; default: the arbiter's name and digest"),
            "answers": ("", "the evaluation to judge instead of the trees"),
            "follow": (False, "wait for an exploration that is still running"),
            "dry_run": (False, "say what would be asked, where and at what price; no more"),
            "cache": ("readwrite", "of raw replies; readonly: nothing is asked; off: none"),
            "allow_upload": (False, "pictures may be sent to another machine than this"),
            "write_batch": ("", "write what would be asked into this batch file, and ask nothing"),
            "read_batch": ("", "judge by these files (or folder) of a batch's answers"),
            "batch_mb": (190, "more MiB go into several batch files"),
        },
        resumes=True,
        alone=True,
        verbs={
            "check": Verb(
                "ask the judge about cases whose verdict is known, some of which give it orders",
                "srpo judge check --config=configs/photos.py --config.judge.model=NAME",
                "Exit code 0 only if all verdicts are right.",
                workdir=None,
            ),
            "sample": Verb(
                "write a file of branches, or of answers, for a person to label",
                "srpo judge sample --workdir=runs/mini",
                "As many of each verdict as there are, in an order that tells nothing of it.\n"
                "A file that has a label already is never overwritten.",
                config=None,
                options={
                    **OF_VERDICTS,
                    "count": (100, "so many at most"),
                    "out": ("", "where to; default WORKDIR/to_label.jsonl"),
                },
            ),
            "calibrate": Verb(
                "how far the verdicts agree with the labels of people",
                "srpo judge calibrate --workdir=runs/mini --labels=runs/mini/to_label.jsonl",
                "Prints confusion, rates with intervals, agreement and the corrected rate, and\n"
                "writes WORKDIR/calibration.html with the cases in which they differ, and\n"
                "calibration.json beside it, which `srpo data card` shows.",
                config=None,
                options={
                    "labels": ("", "JSONL of a person's labels; several people: commas between"),
                    **OF_VERDICTS,
                    "out": ("", "where to; default WORKDIR/calibration.html"),
                },
            ),
            "compare": Verb(
                "two sets of verdicts on the same trees, or answers",
                "srpo judge compare NAME OTHER --workdir=runs/mini",
                config=None,
                options={
                    "one": ("", "name of a verdict set"),
                    "other": ("", "name of another"),
                    "answers": OF_VERDICTS["answers"],
                },
                positional=("one", "other"),
            ),
        },
    ),
    "train": Verb(
        "train on the trees of WORKDIR",
        "srpo train --config=configs/ssui_mini.py --config.train.steps=50 --workdir=runs/mini",
        "Writes checkpoints and metrics.jsonl. Run the same command again to go on after an\n"
        "interruption, at the step where it stopped.",
        options={
            "dry_run": (False, "check settings, data, mesh and disk, print what it takes; no more"),
            "profile": ("", "trace these steps of this command into WORKDIR/profile"),
            "verify": (
                False,
                "read trees and verdicts in full first, and name what is damaged",
            ),
        },
        bare={"profile": "10:13"},
        resumes=True,
    ),
    "export": Verb(
        "write the newest checkpoint, or another, as a Hugging Face directory",
        "srpo export --workdir=runs/mini",
        "The config is the one that WORKDIR was trained with.",
        config=None,
        options={
            "out": ("", "where to; default WORKDIR/export, for peft WORKDIR/adapter"),
            "format": ("merged", "merged: a whole model; peft: a LoRA run's adapters alone"),
            "step": ("", "a number, or best by the run's train.best_metric; default the newest"),
            "verify": (False, "read it back and compare logits, by transformers if torch is there"),
            "bake_prompt": ("", "write the prompt into the chat template; or reply_only"),
            "allow_nonfinite": (False, "write NaN and infinite numbers, too"),
            "check": ("", "an export: say whether its files are what was exported; no more"),
        },
        bare={"bake_prompt": "prompt"},
        without_workdir="check",
    ),
    "eval": Verb(
        "answer the test questions, or those of safety benchmarks",
        "srpo eval --config=configs/ssui_mini.py --workdir=runs/mini --name=after",
        "Writes WORKDIR/eval/NAME; `srpo judge --answers=NAME` then scores the answers.",
        runs=("model",),
        options={
            "name": ("", "name of the evaluation; default: the benchmark's, else eval"),
            "model": ("", "HF directory; default: newest checkpoint of WORKDIR, else model.path"),
            "benchmark": ("", "names of docs/benchmarks.md, or module:Class; commas between"),
            "data": ("", "folder of its data, or of a folder for each; or NAME=FOLDER,..."),
            "best_of": ("", "choose among these answers (eval.samples) by a judge's verdicts"),
            "verdicts": ("", "with best_of: the verdict set; needed where there are several"),
            "served_model": ("", "a model behind a server answers, by its name there"),
            "base_url": ("", "of that server; default http://127.0.0.1:8000/v1"),
            "api_key_env": ("", "environment variable with its key"),
            "allow_upload": (False, "pictures may be sent to another machine than this"),
        },
    ),
    "run": Verb(
        "all stages, round after round, each with the policy of the one before",
        "srpo run --config=configs/ssui_mini.py --workdir=runs/rounds --rounds=2",
        "Explores, judges, trains, exports and evaluates in WORKDIR/round-1, round-2 and so on;\n"
        "each is a workdir for the other verbs. Run the same command again to go on after an\n"
        "interruption, or with more rounds. Without an arbiter it stops when there is something\n"
        "to judge, with exit code 0.",
        options={
            "rounds": (1, "so many in all, those of before included"),
            "allow_upload": (False, "pictures may be sent to another machine than this"),
        },
        resumes=True,
    ),
    "ask": Verb(
        "put one question to a policy; to a trained run, before and after",
        "srpo ask --model=runs/mini --image=kitchen.jpg --question='What is wrong here?'",
        "Prints path and reply. A workdir is asked as its own config says; for a HF directory,\n"
        "--config says how it is prompted and read.",
        config="configs/common.py",
        workdir=None,
        runs=("model",),
        options={
            "model": ("", "HF directory, or workdir of a run"),
            "image": ("", "a picture file; none: text alone"),
            "question": ("", "the text"),
            "max_new_tokens": (512, "an answer that has not ended by then is cut"),
        },
    ),
    "serve": Verb(
        "answer requests of the OpenAI chat API with a policy",
        "srpo serve --model=runs/mini --config.serve.answer=reply",
        "For lmms-eval, VLMEvalKit, Inspect. A workdir is loaded as its own config says, with its\n"
        "newest checkpoint; sections eval, explore and serve come from --config. Ctrl-C ends it.",
        config="configs/common.py",
        workdir=None,
        runs=("model",),
        options={
            "model": ("", "HF directory, or workdir of a run"),
            "name": ("", "what requests call the model; default: the folder's name"),
            "host": ("127.0.0.1", "address to listen on"),
            "port": (8000, "0: any free one, which is printed"),
            "allow_remote": (False, "another host than this one may ask, without a password"),
        },
    ),
    "report": Verb(
        "one HTML page of a run: curves, tables, trees",
        "srpo report runs/mini",
        "Writes WORKDIR/report.html, which needs nothing else to be looked at.",
        config=None,
        options={"out": ("", "where to; default WORKDIR/report.html")},
        positional=("workdir",),
    ),
    "table": Verb(
        "methods against benchmarks, of one workdir or several, with intervals and tests",
        "srpo table runs/mini runs/other --format=markdown",
        "Of every eval/NAME/scores.json there; seeds of one config are one row, and each row is\n"
        "compared with the base policy on the same questions.",
        config=None,
        workdir=None,
        options={
            "format": ("terminal", "terminal, markdown, latex or csv"),
            "out": ("", "file to write instead of printing"),
        },
        several="workdir",
    ),
    "plan": Verb(
        "which mesh and batch for a TPU slice, and what to expect; needs no TPU",
        "srpo plan --config=configs/pod.py --config.model.path=DIR --topology=v5e:8x8",
        "Compiles the real programs with libtpu; of the model only config.json is read.",
        workdir=None,
        options={
            "for": ("train", "train, or explore: mesh, batch and slots of explore.*"),
            "topology": ("", "TPU slices, as v5e:8x8 or v5p:4x4x4,v6e:8x8"),
            "meshes": ("", "only these: fsdp*tensor or data*fsdp*tensor, as 64*1,32*2"),
            "rows": ("", "only these numbers of rows per step (explore.batch), as 64,128"),
            "remat": ("", "train: only these policies of model.remat"),
            "row_tokens": (0, "train: tokens of a row; default pack.row_tokens, else 8192"),
            "question": ("", "what yours are like, as image_tokens=256,branch_tokens=80"),
            "top": (3, "compile until so many candidates fit"),
            "full": (False, "compile the best one again with full effort"),
            "price": ("", "dollars per chip-hour; default: srpo_jax/distributed/accelerators.py"),
            "cache": ("", "folder of what was compiled; default: in the user's cache"),
            "jobs": (0, "compilations at once, 2 to 4 GB each; default: CPU cores"),
            "json": (False, "print one JSON object"),
            "markdown": (False, "print a Markdown table"),
        },
        resumes=True,
    ),
    "launch": Verb(
        "print or start a command on this machine, TPUs, Kubernetes or Slurm",
        "srpo launch --processes=2 --devices=4 --submit -- train --config=FILE --workdir=DIR",
        config=None,
        workdir=None,
        passed_on=True,
    ),
    "data": Verb(
        "data of other tools in and out, and one page on a data set",
        "srpo data import pairs.jsonl runs/mine",
        config=None,
        workdir=None,
        verbs={
            "import": Verb(
                "make records, and trees with labels, of a file of another tool",
                "srpo data import pairs.parquet runs/mine --config=configs/photos.py",
                "Writes OUT/records.jsonl to explore with, OUT/trees.jsonl and OUT/images. With a\n"
                "policy (model.path) also OUT/trees and OUT/verdicts, to train on.",
                config="configs/common.py",
                workdir=None,
                options={
                    "in": (
                        "",
                        "JSON lines, JSON, Parquet or Arrow: a file, or a folder of one kind",
                    ),
                    "out": ("", "folder to write; a workdir for srpo train"),
                    "from": ("", "the format; default: what the file shows"),
                    "part": ("", "which data set of a file that names several"),
                    "images": ("", "folder that names of pictures begin in; default: that of IN"),
                    "license": ("", "licence of rows that do not say theirs"),
                    "source": ("", "name of where it comes from; default: the format's"),
                    "limit": (0, "read so many rows; 0: all"),
                    "allow_bad": (0, "leave out so many rows that cannot be used, by name"),
                    "dry_run": (False, "say what would be read and what not; write nothing"),
                },
                positional=("in", "out"),
            ),
            "export": Verb(
                "write pairs, or labelled steps, as another tool reads them",
                "srpo data export runs/mine out --to=llama_factory",
                "Whole replies: what stands before a branch point is written into both.",
                config=None,
                workdir=None,
                options={
                    "in": ("", "workdir with judged trees, folder of an import, or any such file"),
                    "out": ("", "new folder to write"),
                    "to": ("", "the format"),
                    "from": ("", "the format of a file; default: what it shows"),
                    "verdicts": ("", "name of the verdict set; needed where there are several"),
                    "scope": ("reply", "what makes a branch safe: its reply, or also its path"),
                    "container": ("", "jsonl, json or parquet; default: what the tool likes"),
                    "limit": (0, "of so many questions; 0: all"),
                    "allow_bad": (0, "leave out so many questions that it cannot hold, by name"),
                },
                positional=("in", "out"),
            ),
            "check": Verb(
                "one page on a data set: counts, lengths, pictures, duplicates, leaks",
                "srpo data check runs/mine --against=data/test.jsonl",
                "Writes IN/check.html. With a policy (model.path) lengths are in tokens.",
                config="configs/common.py",
                workdir=None,
                options={
                    "in": ("", "records, a folder of an import, a workdir, or a file of others"),
                    "against": (
                        "",
                        "sets that it must have nothing in common with; commas between",
                    ),
                    "from": ("", "the format of a file; default: what it shows"),
                    "verdicts": ("", "name of the verdict set; needed where there are several"),
                    "ask_judge": (
                        False,
                        "ask the judge which questions are unsafe by their text alone",
                    ),
                    "out": ("", "where to; default check.html in IN, or beside it"),
                },
                positional=("in",),
            ),
            "construct": Verb(
                "make records of a folder of pictures, by chat models: SSUI's agents",
                "srpo data construct pictures runs/ssui --writer=A --arbiter=B --answerer=C "
                "--evaluator=D",
                "Says what it will ask and cost, asks, and writes OUT/records.jsonl. A model is\n"
                "named as judge.base_url knows it, or by a config file with a judge section.",
                config="configs/common.py",
                workdir=None,
                options={
                    "in": ("", "folder of pictures; of msr_align a JSONL file of records"),
                    "out": ("", "folder to write"),
                    "stages": ("ssui", "ssui, msr_align, or a YAML file of your own"),
                    "writer": ("", "model that writes questions, paths and replies"),
                    "answerer": ("", "model that answers the words without the picture"),
                    "arbiter": ("", "model that judges pictures, words and pairs"),
                    "evaluator": ("", "the judge of later evaluations: named, not asked"),
                    "allow_same_model": (False, "one model may be several of these"),
                    "per_image": (1, "questions for each picture, each of another category"),
                    "against": ("", "sets to have nothing in common with; commas between"),
                    "license": ("", "licence of pictures that do not say theirs"),
                    "source": ("", "where they come from; default: the folder's name"),
                    "pilot": (0, "only so many rows, and then what the others will take"),
                    "dry_run": (False, "say what would be asked and cost; no more"),
                    "allow_upload": (False, "pictures may be sent to another machine"),
                },
                positional=("in", "out"),
                resumes=True,
            ),
            "review": Verb(
                "a page on which people accept, edit and reject records, or label judged answers",
                "srpo data review runs/ssui --apply=decisions-ann.json,decisions-bo.json",
                "Writes IN/review.html, which needs no server. With --apply, what was decided:\n"
                "IN/reviewed, with the records that stay; of judged answers, files of labels.",
                config=None,
                workdir=None,
                options={
                    "in": ("", "folder with records.jsonl; with --judged, a workdir"),
                    "apply": ("", "files that the page saved, or an export of Label Studio"),
                    "out": ("", "with --apply: where to; default IN/reviewed, of labels IN"),
                    "sample": (0, "so many, by category and risk, or by verdict; 0: all, or 100"),
                    "judged": (False, "the branches that a judge has verdicts on, for labels"),
                    "answers": ("", "the same of the answers of an evaluation"),
                    "verdicts": ("", "name of the verdict set; needed where there are several"),
                    "to": ("", "label_studio: its JSON and labelling config, and no page"),
                },
                positional=("in",),
            ),
            "release": Verb(
                "a folder to pass on, without unsafe replies and texts of branches",
                "srpo data release runs/ssui/reviewed out",
                "Of records, or of a workdir with judged trees: texts that are safe, and of all\n"
                "others hashes and verdicts, with licences, a canary and a card.",
                config=None,
                workdir=None,
                options={
                    "in": ("", "folder with records.jsonl, or a workdir"),
                    "out": ("", "new folder to write"),
                    "verdicts": ("", "name of the verdict set; needed where there are several"),
                    "allow": ("", "licences (unknown: none) and sources that may go out"),
                    "include_harmful": (False, "unsafe replies and texts of branches go out, too"),
                },
                positional=("in", "out"),
            ),
            "card": Verb(
                "a data card: origin, filters, licences, models, prompts, judges",
                "srpo data card runs/mine",
                "Of a folder of an import, or a workdir. An import writes one itself.",
                config=None,
                workdir=None,
                options={
                    "in": ("", "the folder"),
                    "out": ("", "where to; default README.md in it"),
                },
                positional=("in",),
            ),
        },
    ),
    "checkpoints": Verb(
        "look after the checkpoints of a run",
        "srpo checkpoints check runs/mini",
        config=None,
        workdir=None,
        verbs={
            "check": Verb(
                "say of each checkpoint whether it is good",
                "srpo checkpoints check runs/mini",
                "Reads every file of WORKDIR/checkpoints. Exit code 0 only if there are some and\n"
                "all are good.",
                config=None,
                positional=("workdir",),
            ),
        },
    ),
    "env": Verb("versions and devices, for a bug report", "srpo env", config=None, workdir=None),
}

JUDGING = ("judge", "judge check")
DATA = ("data import", "data check")
# Which verbs read a section of the config, for their help; "": name and seed, which are in none.
READ_BY: dict[str, tuple[str, ...]] = {
    "": ("demo", "run", "explore", "pilot", "train", "eval"),
    "model": (
        *(*JUDGING, "demo", "run", "explore", "pilot", "train", "eval", "ask", "serve", "plan"),
        *DATA,
    ),
    "data": ("demo", "run", "explore", "pilot", "judge", "train", "eval", "serve"),
    "prompt": ("demo", "run", "explore", "pilot", "train", "eval", "ask", "serve", *DATA),
    "format": ("demo", "run", "explore", "pilot", "train", "eval", "ask", "serve", *DATA),
    "explore": (*JUDGING, "demo", "run", "explore", "pilot", "eval", "ask", "serve", "plan"),
    "arbiter": (*JUDGING, "demo", "run", "explore", "pilot", "train", "data check"),
    "judge": (*JUDGING, "run", "pilot", "data check", "data construct"),
    "objective": ("demo", "run", "explore", "pilot", "train", "plan"),
    "pack": ("demo", "run", "pilot", "train", "plan"),
    "train": ("demo", "run", "pilot", "train", "plan"),
    "lora": ("demo", "run", "pilot", "train"),
    "mesh": ("demo", "run", "pilot", "train"),
    "processes": ("demo", "run", "explore", "pilot", "train", "eval"),
    "eval": ("demo", "run", "train", "eval", "serve"),
    "rounds": ("run",),
    "serve": ("serve",),
}
