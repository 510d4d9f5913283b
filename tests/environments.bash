# Interpreters and private virtual environments, for tests/run and .ci/run.
# shellcheck shell=bash
#
# Sourced; defines functions and nothing else. An environment is kept in the user's
# cache between runs, and lies in a temporary directory where there is none to write to.

cache_folder() { # prints where environments are kept: outside the checkout
	local folder=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/leoronic-tests
	if mkdir -p "$folder" 2>/dev/null && [[ -w $folder ]]; then
		printf '%s\n' "$folder"
	else
		# One for each user, so that a second run finds it again.
		folder=${TMPDIR:-/tmp}/leoronic-tests-$(id -u)
		mkdir -m 700 "$folder" 2>/dev/null || true
		[[ -O $folder && -w $folder ]] && printf '%s\n' "$folder"
	fi
}

real_python() { # COMMAND MINIMUM: prints its executable, if it runs and is new enough
	local minimum=$2
	# Also what a pyenv shim leads to; a shim without a version fails here.
	"$1" -c "
import sys
if sys.version_info < (${minimum//./, }):
    sys.exit(1)
import sqlite3, venv, multiprocessing
print(sys.executable)" 2>/dev/null </dev/null
}

find_python() { # MINIMUM: prints the first interpreter that will do
	local name
	for name in python3 python3.{11,12,13,10,9,8,7} python; do
		real_python "$name" "$1" && return
	done
	for name in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python; do
		real_python "$name" "$1" && return
	done
	return 1
}

find_version() { # 3.7: prints an interpreter of just that version
	local name
	for name in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/python; do
		if [[ $("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$1" ]]; then
			real_python "$name" "$1" && return
		fi
	done
	return 1
}

environment() { # PYTHON NAME REQUIREMENT...: prints the python of an environment that has them
	local python=$1 name=$2 folder key new
	shift 2
	folder=$(cache_folder) || {
		echo "no folder for virtual environments; neither a cache nor ${TMPDIR:-/tmp} can be written; set XDG_CACHE_HOME" >&2
		return 1
	}
	# The interpreter and what is asked for are in the name, so that neither goes stale.
	key=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
	key=$folder/$key-$name-$(printf '%s\n' "$python" "$@" | cksum | tr -d ' ')
	if ! [[ -e $key/complete ]] || ! "$key/bin/python" -c '' 2>/dev/null; then
		# Built aside, as two runs may want it at once, and linked to: scripts in an
		# environment hold its path, so it can't be moved.
		new=$key.$$
		make_environment "$python" "$new" "$@" || {
			rm -rf "$new"
			return 1
		}
		if [[ -e $key/complete ]] && "$key/bin/python" -c '' 2>/dev/null; then
			rm -rf "$new" # another run was faster, and uses its own by now
		else
			rm -rf "$key"
			ln -s "$new" "$key"
		fi
	fi
	printf '%s\n' "$key/bin/python"
}

make_environment() { # PYTHON FOLDER REQUIREMENT...
	local python=$1 folder=$2 log
	shift 2
	echo "making a virtual environment for $python: $*" >&2
	rm -rf "$folder"
	if ! log=$("$python" -m venv "$folder" 2>&1); then
		printf '%s\n' "$log" "no virtual environment; $python can't make one; on Debian: apt install python3-venv" >&2
		return 1
	fi
	if ! log=$("$folder/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$@" 2>&1 </dev/null); then
		printf '%s\n' "$log" "not installed: $*; pip found no index that has them; connect to one once" >&2
		return 1
	fi
	touch "$folder/complete"
}
