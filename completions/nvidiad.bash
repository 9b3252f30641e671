# bash completion for nvidiad                                         -*- shell-script -*-
# SPDX-License-Identifier: Apache-2.0
# Written by tools/completions.py from the parser of nvidiad: make completions.

_nvidiad() {
  local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
  local verb='status' option='' front='' takes='' i
  # bash cuts words at '=': --json=s is three of them, or one where COMP_WORDBREAKS was changed.
  if [[ $cur == '=' ]]; then
    option=$before cur=''
  elif [[ $before == '=' ]]; then
    option=${COMP_WORDS[COMP_CWORD - 2]}
  elif [[ $cur == --*=* ]]; then
    option=${cur%%=*} front=${cur%%=*}= cur=${cur#*=}
  elif [[ $before == --* ]]; then
    option=$before
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} != [-=]* && ${COMP_WORDS[i - 1]} != '=' ]]; then
      verb=${COMP_WORDS[i]}
      break
    fi
  done
  case $verb:$option in
  *:--json) takes='pretty short off' ;;
  *:--config) takes='@file' ;;
  *:--root) takes='@directory' ;;
  *) option='' ;;
  esac
  if [[ -z $option ]]; then
    if [[ $cur == -* ]]; then
      case $verb in
      status | plan | reconcile | list | check | explain | install | reboot-check | run | activate | \
        deactivate | cdi | health | fabric) takes='--help --json= --config= --root=' ;;
      gc) takes='--help --json= --config= --root= --dry-run' ;;
      esac
    elif ((i >= COMP_CWORD)); then
      takes='status plan reconcile list check explain install gc reboot-check run activate deactivate cdi health fabric'
    else
      case $verb in
      explain) takes='no-gpu other-owner lockdown config-invalid not-configured engine-unreachable engine-lost engine-too-old registry-unreachable registry-stalled registry-auth registry-tls image-missing image-unbuildable image-corrupt image-foreign image-mismatch signature-missing signature-untrusted key-unusable image-failed install-busy pull-failed pull-timeout manifest-invalid tree-invalid tree-missing disk-full read-only vermagic-mismatch module-refused module-rejected module-in-use module-foreign gpu-refused gpu-unsupported flavour-wrong symbol-unknown symbol-mismatch dependency-missing fabric-missing fabric-mismatch fabric-unsupported driver-mismatch version-mismatch driver-too-old driver-fallback next-unknown next-unreadable logind-refused exposure-failed unit-failed unit-masked bus-lost cdi-failed nvml-failed gpu-lost gpu-recovery-needed recipe-invalid feed-unreachable feed-invalid release-unknown download-failed digest-mismatch signature-invalid disk-image-invalid source-invalid build-failed proof-failed push-refused api-unreachable api-refused not-running not-authorized command-failed internal' ;;
      install) takes='@file' ;;
      esac
    fi
  fi
  COMPREPLY=()
  case $takes in
  '') ;;
  @file | @directory)
    compopt -o filenames 2>/dev/null
    local kind=-f
    [[ $takes == @directory ]] && kind=-d
    mapfile -t COMPREPLY < <(compgen "$kind" -- "$cur")
    ;;
  *)
    mapfile -t COMPREPLY < <(compgen -P "$front" -W "$takes" -- "$cur")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    ;;
  esac
  return 0
}
complete -F _nvidiad nvidiad
