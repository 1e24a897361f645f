"""The ordinary programs of the embedded corpus: one builder of varied workloads for each."""

import dataclasses
import random
from collections.abc import Callable

from syscall_lm.experiments.corpus.workspace import Workspace, fetch, serve_page, wait_for_port


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that is recorded.

    Attributes:
      build: prepares one run in a workspace and returns the command to record.
      needs: the programs that must be installed.
    """

    build: Callable[[Workspace], list[str]]
    needs: tuple[str, ...]


PROGRAMS: dict[str, Program] = {}


def _program(name: str, *needs: str) -> Callable[[Callable[[Workspace], list[str]]], Callable]:
    def register(build: Callable[[Workspace], list[str]]) -> Callable:
        PROGRAMS[name] = Program(build, needs or (name,))
        return build

    return register


def _some(rng: random.Random, *options: str) -> list[str]:
    """Each option with probability one half, in order."""
    return [option for option in options if rng.random() < 0.5]


@_program("ls")
def _ls(ws: Workspace) -> list[str]:
    ws.files("tree", 3, 40, lines=3)
    return ["ls", *_some(ws.rng, "-l", "-a", "-R", "-t", "--color=always"), "tree"]


@_program("cp")
def _cp(ws: Workspace) -> list[str]:
    ws.files("tree", 2, 25)
    return ["cp", "-r", *_some(ws.rng, "-p", "-v"), "tree", "copy"]


@_program("find")
def _find(ws: Workspace) -> list[str]:
    ws.files("tree", 3, 16, ending=ws.rng.choice([".txt", ".log"]))
    actions = ["-print"], ["-size", "+1k", "-ls"], ["-newer", "/etc/passwd"], ["-exec", "wc", "-c", "{}", "+"]
    action = ws.rng.choice([*actions, ["-name", "*a*", "-exec", "cat", "{}", ";"], ["-name", "*e*", "-delete"]])
    return ["find", "tree", "-type", "f", *action]


@_program("sort")
def _sort(ws: Workspace) -> list[str]:
    names = ws.files("tree", 1, 6, lines=400)
    return ["sort", *_some(ws.rng, "-n", "-r", "-u", "--parallel=2"), "-o", "sorted", *names]


@_program("sha256sum", "sha256sum", "md5sum")
def _checksum(ws: Workspace) -> list[str]:
    return [ws.rng.choice(["sha256sum", "md5sum"]), *ws.files("tree", 2, 20, lines=800)]


@_program("du")
def _du(ws: Workspace) -> list[str]:
    ws.files("tree", 5, 30)
    return ["du", *_some(ws.rng, "-a", "-h", "-c"), "tree"]


@_program("grep")
def _grep(ws: Workspace) -> list[str]:
    ws.files("tree", 3, 25, lines=100)
    ws.write("tree/last.txt", f"{(wanted := ws.words(1))}\n")  # finding nothing would be a failure
    return ["grep", "-r", *_some(ws.rng, "-n", "-i", "-c", "-w"), wanted, "tree"]


@_program("sed")
def _sed(ws: Workspace) -> list[str]:
    names = ws.files("tree", 1, 12, lines=200)
    return ["sed", *_some(ws.rng, "-i", "-E"), f"s/{ws.words(1)}/{ws.words(1)}/g", *names]


@_program("awk")
def _awk(ws: Workspace) -> list[str]:
    names = ws.files("tree", 1, 10, lines=300)
    script = ws.rng.choice(
        [
            "{ sum += $1 } END { print sum }",
            "{ count[$2]++ } END { for (word in count) print count[word], word }",
            '{ print > ($1 % 3 ".part") }',
            '{ print $2 | "sort" } END { close("sort") }',
        ]
    )
    return ["awk", script, *names]


_SH_SCRIPTS = (
    "for f in tree/*; do if [ -f $f ]; then wc -l < $f; fi; done",
    "cat tree/*.txt | tr a-z A-Z | sort | uniq -c | head -n 5",
    "n=0; while read number rest; do n=$((n + number)); done < tree/list; echo $n > total; cat total",
    "mkdir -p out; for f in tree/*.txt; do cp $f out/; mv out/$(basename $f) out/$(basename $f).bak; done",
    "cut -d' ' -f2 tree/list | sort -u > words; test -s words && echo $(wc -l < words) words; rm words",
    "umask 077; date +%Y > stamp; touch -r stamp marker; ls -l stamp marker; rm -f stamp marker",
)


@_program("sh")
def _sh(ws: Workspace) -> list[str]:
    ws.files("tree", 1, 4)
    ws.write("tree/list", ws.text(ws.rng.randint(5, 60)))
    ws.write("tree/last.txt", ws.text(3))
    ws.write("job.sh", "\n".join(["#!/bin/sh", *ws.rng.sample(_SH_SCRIPTS, 2)]) + "\n", executable=True)
    return ws.rng.choice([["sh", "job.sh"], ["./job.sh"]])


_BASH_SCRIPTS = (
    'declare -A seen; while read -r n word _; do seen[$word]=$n; done < tree/list; printf "%s\\n" "${!seen[@]}" | sort',
    "total() { local s=0 n; for n in $(cut -d' ' -f1 \"$1\"); do ((s += n)); done; echo $s; }; total tree/list",
    "diff <(sort tree/list) <(sort -u tree/list) | wc -l",
    'for ((i = 0; i < 6; i++)); do echo "line $i ${RANDOM}" >> log; done; tail -n 3 log; rm log',
    'shopt -s nullglob globstar; for f in tree/**/*.txt; do [[ $f == *k* ]] && head -n 1 "$f"; done; true',
    "(cd tree && ls | wc -l) & sleep 0.02 & wait; trap 'rm -f lock' EXIT; echo $$ > lock",
    'mapfile -t rows < tree/list; grep -c e <<< "${rows[*]}"; read -r first _ <<< "${rows[0]}"; echo $first',
)


@_program("bash")
def _bash(ws: Workspace) -> list[str]:
    ws.files("tree", 2, 6)
    ws.write("tree/list", ws.text(ws.rng.randint(5, 60)))
    return ["bash", ws.write("job.bash", "\n".join(ws.rng.sample(_BASH_SCRIPTS, 2)) + "\n")]


_GIT_SESSIONS = (
    "git status --short; git add -A; git commit -q -m change; git log --oneline",
    "git diff --stat; git stash -q; git stash pop -q",
    "git checkout -q -b topic; git commit -q -a -m topic; git checkout -q main; git merge -q topic",
    "git clone -q . ../clone; git -C ../clone log -p -n 2",
    "git grep -n stone; git blame file.txt; git show --stat HEAD",
    "git gc -q; git fsck --no-progress; git archive -o out.tar HEAD",
    "git init -q -b main ../other; git branch -v; git tag v1; git describe --tags",
)


@_program("git")
def _git(ws: Workspace) -> list[str]:
    (ws.home / ".gitconfig").write_text(
        "[user]\nname = A User\nemail = user@example.org\n[maintenance]\nauto = false\n"
    )
    ws.write("repo/file.txt", "stone\n" + ws.text(20))
    ws.files("repo", 2, 15)
    ws.prepare("git", "init", "-q", "-b", "main", "repo")
    for _ in range(ws.rng.randint(1, 3)):
        ws.write("repo/file.txt", "stone\n" + ws.text(20))
        ws.prepare("git", "-C", "repo", "add", "-A")
        ws.prepare("git", "-C", "repo", "commit", "-q", "--allow-empty", "-m", ws.words(3))
    ws.write("repo/file.txt", "stone\n" + ws.text(22))
    return ["sh", "-c", "cd repo && " + ws.rng.choice(_GIT_SESSIONS)]


_PYTHON_SCRIPTS = {
    "python-files": """
import csv, json, pathlib, sys
rows = {}
for path in sorted(pathlib.Path("tree").rglob("*.txt")):
    lines = path.read_text().splitlines()
    rows[path.name] = {"lines": len(lines), "words": sum(len(line.split()) for line in lines)}
json.dump(rows, open("rows.json", "w"), indent=1)
with open("rows.csv", "w", newline="") as file:
    csv.writer(file).writerows([name, *row.values()] for name, row in rows.items())
for name in list(rows)[:: int(sys.argv[1])]:
    pathlib.Path(name + ".json").write_text(json.dumps(rows[name]))
print(len(json.load(open("rows.json"))))
""",
    "python-sqlite": """
import pathlib, sqlite3, sys
db = sqlite3.connect("words.db")
db.execute("create table words (file text, word text)")
for path in pathlib.Path("tree").rglob("*.txt"):
    with db:
        db.executemany("insert into words values (?, ?)", [(path.name, word) for word in path.read_text().split()])
if int(sys.argv[1]) % 2:
    db.execute("create index by_word on words (word)")
print(db.execute("select word, count(*) from words group by word order by 2 desc").fetchmany(int(sys.argv[1])))
db.close()
""",
    "python-subprocess": """
import pathlib, shutil, subprocess, sys, tempfile
with tempfile.TemporaryDirectory() as folder:
    for path in sorted(pathlib.Path("tree").rglob("*.txt"))[: int(sys.argv[1])]:
        target = pathlib.Path(folder, path.name)
        shutil.copy(path, target)
        done = subprocess.run(["sort", target], capture_output=True, text=True, check=True)
        print(subprocess.check_output(["wc", "-w"], input=done.stdout, text=True).strip())
""",
    "python-threads": """
import concurrent.futures, hashlib, pathlib, queue, sys, threading
paths = list(pathlib.Path("tree").rglob("*.txt"))
with concurrent.futures.ThreadPoolExecutor(int(sys.argv[1])) as pool:
    print(list(pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), paths)))
work = queue.Queue()
def write():
    while (item := work.get()) is not None:
        pathlib.Path("out.txt").open("a").write(item)
writer = threading.Thread(target=write)
writer.start()
for path in paths:
    work.put(path.name)
work.put(None)
writer.join()
""",
}


def _python(script: str) -> Callable[[Workspace], list[str]]:
    def build(ws: Workspace) -> list[str]:
        ws.files("tree", 4, 15, lines=120)
        return ["python3", ws.write("job.py", script.lstrip()), str(ws.rng.randint(1, 3))]

    return build


for _name, _script in _PYTHON_SCRIPTS.items():
    PROGRAMS[_name] = Program(_python(_script), ("python3",))


def _c_source(rng: random.Random, lines: int) -> str:
    functions = [f"static long f{n}(long x) {{ return x * {rng.randrange(2, 99)} + {n}; }}\n" for n in range(lines)]
    calls = "".join(f"  total = f{n}(total);\n" for n in range(lines))
    includes = "".join(
        f"#include <{name}.h>\n" for name in rng.sample(["stdlib", "string", "math", "time", "errno"], 2)
    )
    body = "int main(int argc, char **argv) {\n  long total = argc;\n" + calls
    return f'#include <stdio.h>\n{includes}{"".join(functions)}{body}  printf("%ld\\n", total);\n  return 0;\n}}\n'


@_program("gcc")
def _gcc(ws: Workspace) -> list[str]:
    source = ws.write("job.c", _c_source(ws.rng, ws.rng.randint(1, 30)))
    flags = " ".join(_some(ws.rng, "-O2", "-g", "-Wall"))
    return ["sh", "-c", ws.rng.choice([f"gcc {flags} -o job {source} -lm && ./job", f"gcc {flags} -c {source}"])]


@_program("make", "make", "gcc")
def _make(ws: Workspace) -> list[str]:
    texts = ws.files("tree", 1, 3)
    sums = [f"{text}.sum" for text in texts]
    ws.write("job.c", _c_source(ws.rng, 5))
    rules = "%.sum: %\n\twc -w $< > $@\nall.txt: $(SUMS)\n\tcat $^ | sort > $@\njob: job.c\n\t$(CC) -o $@ $<\n"
    ws.write("Makefile", f"all: all.txt {ws.rng.choice(['', 'job'])}\nSUMS = {' '.join(sums)}\n{rules}")
    return ["make", *_some(ws.rng, "-j2", "-s"), "all"]


@_program("sqlite3")
def _sqlite(ws: Workspace) -> list[str]:
    rows = [f"insert into t values ({n}, '{ws.words(3)}');" for n in range(ws.rng.randint(3, 40))]
    setup = ["create table t (n integer primary key, words text);", *_some(ws.rng, "begin;")]
    queries = [
        "select count(*) from t;",
        "update t set words = upper(words) where n % 3 = 0;",
        "create index w on t (words);",
    ]
    end = ["commit;"] if "begin;" in setup else []
    closing = _some(ws.rng, "pragma integrity_check;", "vacuum;", "select words from t order by words limit 3;")
    ws.write("job.sql", "\n".join([*setup, *rows, *ws.rng.sample(queries, 2), *end, *closing]))
    return ["sqlite3", "job.db", ".read job.sql"]


@_program("tar", "tar", "gzip", "xz")
def _tar(ws: Workspace) -> list[str]:
    ws.files("tree", 3, 25)
    mode = ws.rng.choice(["", "-z", "-J"])
    if ws.rng.random() < 0.5:
        return ["tar", "-c", *filter(None, [mode]), "-f", "tree.tar", "tree"]
    ws.prepare("tar", "-c", *filter(None, [mode]), "-f", "tree.tar", "tree")
    ws.prepare("mkdir", "out")
    return ["tar", "-x", *filter(None, [mode]), "-f", "tree.tar", "-C", "out"]


@_program("gzip")
def _gzip(ws: Workspace) -> list[str]:
    names = ws.files("tree", 1, 12, lines=300)
    if ws.rng.random() < 0.4:
        ws.prepare("gzip", *names)
        return ["gzip", "-d", *_some(ws.rng, "-k"), *(f"{name}.gz" for name in names)]
    return ["gzip", *_some(ws.rng, "-k", "-9"), *names]


@_program("xz")
def _xz(ws: Workspace) -> list[str]:
    return ["xz", *_some(ws.rng, "-k", "-9", "-T2"), *ws.files("tree", 1, 10, lines=300)]


_SERVER = """
import http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass
kind = http.server.ThreadingHTTPServer if sys.argv[1] == "threads" else http.server.HTTPServer
server = kind(("127.0.0.1", 0), Handler)
with open("port", "w") as file:
    file.write(f"{server.server_address[1]}\\n")
for _ in range(int(sys.argv[2])):
    server.handle_request()
server.server_close()
"""


@_program("http-server", "python3")
def _http_server(ws: Workspace) -> list[str]:
    names = [*ws.files("tree", 2, 8), "tree/missing", "tree/", "tree"]
    wanted = [ws.rng.choice(names) for _ in range(ws.rng.randint(1, 8))]

    def client() -> None:
        port = wait_for_port(ws.folder / "port")
        for name in wanted:
            fetch(port, f"/{name}")

    ws.meanwhile(client)
    return ["python3", ws.write("server.py", _SERVER.lstrip()), ws.rng.choice(["threads", "one"]), str(len(wanted))]


@_program("curl")
def _curl(ws: Workspace) -> list[str]:
    requests = ws.rng.randint(1, 4)
    port = ws.listen(serve_page(ws.text(ws.rng.randint(1, 2000)).encode()), requests)
    urls = [f"http://127.0.0.1:{port}/{ws.rng.choice(['', 'page', 'a/b'])}" for _ in range(requests)]
    return [
        "curl",
        "-sS",
        *_some(ws.rng, "-i", "--compressed"),
        *(word for url in urls for word in (url, "-o", "page")),
    ]


@_program("wget")
def _wget(ws: Workspace) -> list[str]:
    requests = ws.rng.randint(1, 3)
    port = ws.listen(serve_page(ws.text(ws.rng.randint(1, 2000)).encode()), requests)
    return ["wget", "-nv", *(f"http://127.0.0.1:{port}/{number}.html" for number in range(requests))]


_PERL_SCRIPTS = (
    'my %n; while (<>) { $n{$_}++ for split } print "$_ $n{$_}\\n" for sort keys %n;',
    'for my $f (@ARGV) { open my $h, "<", $f or die; my @l = <$h>; open my $o, ">", "$f.out"; print $o reverse @l; }',
    'use Digest::SHA; print Digest::SHA->new(256)->addfile($_)->hexdigest, "\\n" for @ARGV;',
    'use File::Find; my $b = 0; find(sub { $b += -s if -f }, "tree"); print "$b\\n"; print `wc -l $ARGV[0]`;',
    'for my $f (@ARGV) { my $p = fork; if (!$p) { exit(-s $f > 999) } waitpid $p, 0; print $? >> 8, "\\n" }',
)


@_program("perl")
def _perl(ws: Workspace) -> list[str]:
    return ["perl", "-w", ws.write("job.pl", ws.rng.choice(_PERL_SCRIPTS)), *ws.files("tree", 2, 10)]


_NODE_SCRIPTS = (
    "for (const f of files) fs.writeFileSync(f + '.json', JSON.stringify(fs.readFileSync(f, 'utf8').split('\\n')));",
    "Promise.all(files.map((f) => fs.promises.readFile(f))).then((all) => console.log(all.map((b) => b.length)));",
    "console.log(files.map((f) => require('crypto').createHash('sha256').update(fs.readFileSync(f)).digest('hex')));",
    "require('child_process').execFile('wc', ['-l', ...files], (_, out) => console.log(out));",
)


@_program("node")
def _node(ws: Workspace) -> list[str]:
    head = "const fs = require('fs');\nconst files = process.argv.slice(2);\n"
    return ["node", ws.write("job.js", head + ws.rng.choice(_NODE_SCRIPTS)), *ws.files("tree", 2, 10)]


@_program("patch", "patch", "diff")
def _patch(ws: Workspace) -> list[str]:
    names = ws.files("old", 2, 10)
    ws.prepare("cp", "-r", "old", "new")
    for name in names[::2]:
        ws.write(name.replace("old/", "new/", 1), ws.text(20))
    reverse = " && patch -R -s -p1 -d old < changes" if ws.rng.random() < 0.4 else ""
    return ["sh", "-c", f"diff -ru old new > changes; patch -s -p1 -d old < changes{reverse}"]


@_program("xargs", "xargs", "find")
def _xargs(ws: Workspace) -> list[str]:
    ws.files("tree", 3, 8)
    work = ws.rng.choice(["wc -l", "cksum", "tail -n 2", "stat -c %s", "touch"])
    return ["sh", "-c", f"find tree -type f | xargs -n {ws.rng.randint(2, 5)} -P {ws.rng.randint(1, 2)} {work}"]


@_program("openssl")
def _openssl(ws: Workspace) -> list[str]:
    names = ws.files("tree", 1, 6, lines=500)
    encrypt = ["enc", "-aes-256-cbc", "-pbkdf2", "-pass", "pass:example", "-in", names[0], "-out", f"{names[0]}.enc"]
    return ["openssl", *ws.rng.choice([["dgst", "-sha256", *names], encrypt, ["rand", "-hex", "64"]])]
