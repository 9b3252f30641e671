# bash completion for nvidiad-image                                         -*- shell-script -*-
# SPDX-License-Identifier: Apache-2.0
# Written by tools/completions.py from the parser of nvidiad-image: make completions.

_nvidiad_image() {
  local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
  local verb='' option='' front='' takes='' i
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
  *:--family) takes='flatcar coreos debian' ;;
  *:--mirror | *:--channel | developer:--architecture | build:--architecture | cuda:--architecture | \
    *:--newest | *:--apt-source | *:--repository | *:--driver | *:--product | *:--sha256 | \
    *:--fabric-manager-sha256 | *:--tag | *:--developers | *:--base | *:--jobs | *:--cuda-version | \
    *:--minimum-driver | *:--kernel | *:--developer | *:--accelerator) takes='' ;;
  releases:--architecture) takes='amd64 arm64' ;;
  *:--key | *:--engine | *:--location | *:--fabric-manager | *:--module-key | *:--module-certificate | \
    *:--sbom | *:--auth-file | *:--list) takes='@file' ;;
  *:--temporary | *:--cache | *:--kernel-root) takes='@directory' ;;
  *:--flavour) takes='open proprietary' ;;
  *:--source) takes='run redist debian' ;;
  *) option='' ;;
  esac
  if [[ -z $option ]]; then
    if [[ $cur == -* ]]; then
      case $verb in
      releases) takes='--help --json= --family= --mirror= --channel= --architecture= --newest=' ;;
      developer) takes='--help --json= --family= --mirror= --channel= --architecture= --key= --engine= --temporary= --cache= --apt-source= --repository= --again' ;;
      build) takes='--help --json= --family= --mirror= --channel= --architecture= --key= --engine= --temporary= --cache= --apt-source= --driver= --flavour= --product= --source= --location= --sha256= --fabric-manager= --fabric-manager-sha256= --graphics --repository= --tag= --developers= --base= --jobs= --module-key= --module-certificate= --sbom= --fresh' ;;
      cuda) takes='--help --json= --engine= --temporary= --cache= --apt-source= --cuda-version= --minimum-driver= --architecture= --repository= --base=' ;;
      prove) takes='--help --json= --engine= --temporary= --cache= --apt-source= --kernel= --developer= --kernel-root= --skip-boot --accelerator=' ;;
      matrix) takes='--help --json= --engine= --temporary= --cache= --apt-source= --auth-file= --insecure --key=' ;;
      publish) takes='--help --json= --engine= --temporary= --cache= --apt-source= --auth-file= --insecure --key= --skip-proof --retry-unbuildable --sign-present --list= --accelerator= --jobs=' ;;
      '') takes='--help --version' ;;
      esac
    elif ((i >= COMP_CWORD)); then
      takes='releases developer build cuda prove matrix publish'
    else
      case $verb in
      cuda) takes='@directory' ;;
      matrix | publish) takes='@file' ;;
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
complete -F _nvidiad_image nvidiad-image
