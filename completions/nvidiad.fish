# SPDX-License-Identifier: Apache-2.0
# Written by tools/completions.py from the parser of nvidiad: make completions.
complete -c nvidiad -f
complete -c nvidiad -n __fish_use_subcommand -a status -d 'say whether the GPU is usable, and if not, why (default)'
complete -c nvidiad -n __fish_use_subcommand -a plan -d 'say what would be done and why, without the daemon, and do nothing'
complete -c nvidiad -n __fish_use_subcommand -a reconcile -d 'let the daemon look now, back-off or not'
complete -c nvidiad -n __fish_use_subcommand -a list -d 'list the trees on this host'
complete -c nvidiad -n __fish_use_subcommand -a check -d 'say of everything that can be wrong whether it is, and what to do'
complete -c nvidiad -n __fish_use_subcommand -a explain -d 'say what a code means, where it comes from, and what to do'
complete -c nvidiad -n __fish_use_subcommand -a install -d 'install a tree from an image, from a file that holds one, or from a directory'
complete -c nvidiad -n __fish_use_subcommand -a gc -d 'remove the trees that nothing needs'
complete -c nvidiad -n __fish_use_subcommand -a reboot-check -d 'say whether a reboot may go now: exit 0 go, 75 wait'
complete -c nvidiad -n __fish_use_subcommand -a run -d 'run the daemon (nvidiad.service does)'
complete -c nvidiad -n __fish_use_subcommand -a activate -d 'bring the driver on disk into force (nvidia.service does)'
complete -c nvidiad -n __fish_use_subcommand -a deactivate -d 'undo activate'
complete -c nvidiad -n __fish_use_subcommand -a cdi -d 'describe the GPUs for containers (nvidia-cdi.service does)'
complete -c nvidiad -n __fish_use_subcommand -a health -d 'ask NVML after the GPUs (nvidia-health.service does)'
complete -c nvidiad -n __fish_use_subcommand -a fabric -d 'become the driver'\''s fabric manager (nvidia-fabricmanager.service does)'
complete -c nvidiad -n __fish_use_subcommand -l help -d 'show this help message and exit'
complete -c nvidiad -n __fish_use_subcommand -l version -d 'show program'\''s version number and exit'
complete -c nvidiad -n __fish_use_subcommand -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n __fish_use_subcommand -l config -d '' -r -F
complete -c nvidiad -n __fish_use_subcommand -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from status' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from status' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from status' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from status' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from plan' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from plan' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from plan' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from plan' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from reconcile' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from reconcile' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from reconcile' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from reconcile' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from list' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from list' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from list' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from list' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from check' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from check' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from check' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from check' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from explain' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from explain' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from explain' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from explain' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from explain' -a 'no-gpu other-owner lockdown config-invalid not-configured engine-unreachable engine-lost engine-too-old registry-unreachable registry-stalled registry-auth registry-tls image-missing image-unbuildable image-corrupt image-foreign image-mismatch signature-missing signature-untrusted key-unusable image-failed install-busy pull-failed pull-timeout manifest-invalid tree-invalid tree-missing disk-full read-only vermagic-mismatch module-refused module-rejected module-in-use module-foreign gpu-refused gpu-unsupported flavour-wrong symbol-unknown symbol-mismatch dependency-missing fabric-missing fabric-mismatch fabric-unsupported driver-mismatch version-mismatch driver-too-old driver-fallback next-unknown next-unreadable logind-refused exposure-failed unit-failed unit-masked bus-lost cdi-failed nvml-failed gpu-lost gpu-recovery-needed recipe-invalid feed-unreachable feed-invalid release-unknown download-failed digest-mismatch signature-invalid disk-image-invalid source-invalid build-failed proof-failed push-refused api-unreachable api-refused not-running not-authorized command-failed internal' -d 'as in brackets behind a sentence'
complete -c nvidiad -n '__fish_seen_subcommand_from install' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from install' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from install' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from install' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from install' -F
complete -c nvidiad -n '__fish_seen_subcommand_from gc' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from gc' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from gc' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from gc' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from gc' -l dry-run -d 'only say what would be removed'
complete -c nvidiad -n '__fish_seen_subcommand_from reboot-check' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from reboot-check' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from reboot-check' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from reboot-check' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from run' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from run' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from run' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from run' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from activate' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from activate' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from activate' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from activate' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from deactivate' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from deactivate' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from deactivate' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from deactivate' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from cdi' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from cdi' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from cdi' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from cdi' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from health' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from health' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from health' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from health' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
complete -c nvidiad -n '__fish_seen_subcommand_from fabric' -l help -d 'show this help message and exit'
complete -c nvidiad -n '__fish_seen_subcommand_from fabric' -l json -d 'print JSON' -x -a 'pretty short off'
complete -c nvidiad -n '__fish_seen_subcommand_from fabric' -l config -d '' -r -F
complete -c nvidiad -n '__fish_seen_subcommand_from fabric' -l root -d 'look at the host below PATH' -x -a '(__fish_complete_directories)'
