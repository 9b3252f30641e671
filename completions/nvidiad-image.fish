# SPDX-License-Identifier: Apache-2.0
# Written by tools/completions.py from the parser of nvidiad-image: make completions.
complete -c nvidiad-image -f
complete -c nvidiad-image -n __fish_use_subcommand -a releases -d 'list the releases of an OS, with their kernels'
complete -c nvidiad-image -n __fish_use_subcommand -a developer -d 'make the image that has a release'\''s compiler'
complete -c nvidiad-image -n __fish_use_subcommand -a build -d 'build a driver'\''s image for a release'
complete -c nvidiad-image -n __fish_use_subcommand -a cuda -d 'make an image of a CUDA toolkit'
complete -c nvidiad-image -n __fish_use_subcommand -a prove -d 'prove that an image'\''s modules fit their kernel'
complete -c nvidiad-image -n __fish_use_subcommand -a matrix -d 'show what should exist, what does, and what cannot'
complete -c nvidiad-image -n __fish_use_subcommand -a publish -d 'build, prove and push what is missing'
complete -c nvidiad-image -n __fish_use_subcommand -l help -d 'show this help message and exit'
complete -c nvidiad-image -n __fish_use_subcommand -l version -d 'show program'\''s version number and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from releases' -l help -d 'show this help message and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from releases' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad-image -n '__fish_seen_subcommand_from releases' -l family -d '' -x -a 'flatcar coreos debian'
complete -c nvidiad-image -n '__fish_seen_subcommand_from releases' -l mirror -d 'instead of the maker'\''s servers' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from releases' -l channel -d 'or Debian suite' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from releases' -l architecture -d '' -x -a 'amd64 arm64'
complete -c nvidiad-image -n '__fish_seen_subcommand_from releases' -l newest -d 'of each channel; 0: all' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l help -d 'show this help message and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l family -d '' -x -a 'flatcar coreos debian'
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l mirror -d 'instead of the maker'\''s servers' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l channel -d 'or Debian suite' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l architecture -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l key -d 'public keys that releases are signed with, instead of the maker'\''s' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l engine -d 'of the Docker Engine' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l temporary -d '' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l cache -d 'keep downloads there' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l apt-source -d 'of a sources.list for Debian'\''s packages, instead of this machine'\''s' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l repository -d 'in front of the image'\''s name' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from developer' -l again -d 'also where the image is there already'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l help -d 'show this help message and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l family -d '' -x -a 'flatcar coreos debian'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l mirror -d 'instead of the maker'\''s servers' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l channel -d 'or Debian suite' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l architecture -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l key -d 'public keys that releases are signed with, instead of the maker'\''s' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l engine -d 'of the Docker Engine' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l temporary -d '' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l cache -d 'keep downloads there' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l apt-source -d 'of a sources.list for Debian'\''s packages, instead of this machine'\''s' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l driver -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l flavour -d '' -x -a 'open proprietary'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l product -d 'goes into the tag' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l source -d '' -x -a 'run redist debian'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l location -d 'of the driver'\''s package' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l sha256 -d 'of the driver'\''s package' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l fabric-manager -d 'its archive, for NVSwitches' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l fabric-manager-sha256 -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l graphics -d 'with the graphics libraries'
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l repository -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l tag -d 'as image.tag of nvidiad.toml' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l developers -d 'of the developer images'\'' names' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l base -d 'under the installer' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l jobs -d 'compilers at once' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l module-key -d 'signs the kernel modules' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l module-certificate -d '' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l sbom -d 'write the bill of materials there' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from build' -l fresh -d 'use nothing of earlier builds'
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l help -d 'show this help message and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l engine -d 'of the Docker Engine' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l temporary -d '' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l cache -d 'keep downloads there' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l apt-source -d 'of a sources.list for Debian'\''s packages, instead of this machine'\''s' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l cuda-version -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l minimum-driver -d 'oldest that it runs on' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l architecture -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l repository -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -l base -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from cuda' -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l help -d 'show this help message and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l engine -d 'of the Docker Engine' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l temporary -d '' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l cache -d 'keep downloads there' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l apt-source -d 'of a sources.list for Debian'\''s packages, instead of this machine'\''s' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l kernel -d 'another kernel than the image names' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l developer -d 'the developer image with the kernel' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l kernel-root -d 'has boot/ and lib/modules/' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l skip-boot -d 'boot nothing; then it is not proven'
complete -c nvidiad-image -n '__fish_seen_subcommand_from prove' -l accelerator -d 'of QEMU: tcg or kvm' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l help -d 'show this help message and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l engine -d 'of the Docker Engine' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l temporary -d '' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l cache -d 'keep downloads there' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l apt-source -d 'of a sources.list for Debian'\''s packages, instead of this machine'\''s' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l auth-file -d 'credentials: docker'\''s config.json' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l insecure -d 'use HTTP beyond loopback, too'
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -l key -d 'public keys that releases are signed with, instead of the maker'\''s' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from matrix' -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l help -d 'show this help message and exit'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l engine -d 'of the Docker Engine' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l temporary -d '' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l cache -d 'keep downloads there' -x -a '(__fish_complete_directories)'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l apt-source -d 'of a sources.list for Debian'\''s packages, instead of this machine'\''s' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l auth-file -d 'credentials: docker'\''s config.json' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l insecure -d 'use HTTP beyond loopback, too'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l key -d 'public keys that releases are signed with, instead of the maker'\''s' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l skip-proof -d 'publish without proof'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l retry-unbuildable -d 'try again what could not be built'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l sign-present -d 'sign also what others have published'
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l list -d 'also write the compatibility list there' -r -F
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l accelerator -d 'of QEMU: tcg or kvm' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -l jobs -d '' -x
complete -c nvidiad-image -n '__fish_seen_subcommand_from publish' -F
