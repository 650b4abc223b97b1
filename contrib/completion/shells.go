package completion

// What the shells need: to take the words up to the cursor, ask the program,
// and offer what it answers. PROGRAM is its name, NAME the same for functions.

// bash breaks words at = and : too; the program gets them whole, and of what
// it answers bash gets what stands behind the last break.
const bash = `# Completion of PROGRAM for bash; made by: PROGRAM completion bash
_NAME() {
	local words=() joined=1 i piece line tail
	for ((i = 1; i <= COMP_CWORD; i++)); do
		piece=${COMP_WORDS[i]}
		if [[ $piece == [=:]* && ${#words[@]} -gt 0 ]]; then
			words[-1]+=$piece joined=
		elif [[ -z $joined && ${#words[@]} -gt 0 ]]; then
			words[-1]+=$piece joined=1
		else
			words+=("$piece")
		fi
	done
	tail=${COMP_WORDS[COMP_CWORD]}
	[[ $tail == [=:]* ]] && tail=
	tail=${words[-1]%"$tail"}
	COMPREPLY=()
	while IFS= read -r line; do
		case $line in
		:files) compopt -o filenames; mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "${words[-1]#"$tail"}") ;;
		:dirs) compopt -o filenames; mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "${words[-1]#"$tail"}") ;;
		*)
			line=${line%%$'\t'*}
			COMPREPLY+=("${line#"$tail"}")
			;;
		esac
	done < <("${COMP_WORDS[0]}" complete -- "${words[@]}" 2>/dev/null </dev/null)
}
complete -F _NAME PROGRAM
`

const zsh = `#compdef PROGRAM
# Completion of PROGRAM for zsh; made by: PROGRAM completion zsh
_NAME() {
	local line word tab=$'\t' files dirs
	local -a answer described
	answer=("${(@f)$("${words[1]}" complete -- "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null </dev/null)}")
	for line in $answer; do
		case $line in
		:files) files=1 ;;
		:dirs) dirs=1 ;;
		?*)
			word=${${line%%$tab*}//:/\\:}
			[[ $line == *$tab* ]] && word+=:${line#*$tab}
			described+=("$word")
			;;
		esac
	done
	(( $#described )) && _describe -V PROGRAM described
	[[ -n $files ]] && _files
	[[ -n $dirs ]] && _files -/
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
	_NAME "$@"
else
	compdef _NAME PROGRAM
fi
`

const fish = `# Completion of PROGRAM for fish; made by: PROGRAM completion fish
function __NAME_complete
	set -l words (commandline -opc) (commandline -ct)
	for line in ($words[1] complete -- $words[2..] 2>/dev/null </dev/null)
		switch $line
			case :files
				__fish_complete_path (commandline -ct)
			case :dirs
				__fish_complete_directories (commandline -ct)
			case '*'
				echo $line
		end
	end
end
complete -c PROGRAM -f -a '(__NAME_complete)'
`
