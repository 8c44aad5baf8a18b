#!/usr/bin/env bash
# What redis.conf needs, in a directory of its own: passwords, users, a certificate and who signed it.
#
#     deploy/redis/prepare.sh DIRECTORY HOST...     HOST: every name and address that clients will use
#
# What is there already is kept, so that passwords and the CA stay when a host is added; remove redis.crt for that.
set -euo pipefail
umask 077
[[ $# -ge 2 ]] || { echo "usage: $0 DIRECTORY HOST..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
directory=$1
shift
mkdir -p "$directory"
cd "$directory"

for user in metta ray; do
  [[ -s $user.password ]] || openssl rand -hex 32 | tr -d '\n' >"$user.password"
done
digest() { openssl dgst -sha256 -r <"$1" | cut -d ' ' -f 1; }
# Through standard input: no argument list ever holds even the hash of a password.
sed -f <(printf 's/METTA_PASSWORD_SHA256/%s/\ns/RAY_PASSWORD_SHA256/%s/\n' "$(digest metta.password)" "$(digest ray.password)") \
  "$here/users.acl" >users.acl

if [[ ! -s ca.crt ]]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=metta_ray redis CA" \
    -addext "keyUsage=critical,keyCertSign" -keyout ca.key -out ca.crt 2>/dev/null
fi
if [[ ! -s redis.crt ]]; then
  names=""
  for host; do
    kind=DNS && [[ $host =~ ^[0-9.]+$ || $host == *:* ]] && kind=IP
    names+=${names:+,}$kind:$host
  done
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout redis.key -out redis.csr 2>/dev/null
  openssl x509 -req -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names") -out redis.crt 2>/dev/null
  rm redis.csr
fi
chmod 644 ca.crt
echo "in $PWD: redis.crt for $*; passwords in metta.password (runs) and ray.password (Ray's head); clients need ca.crt"
