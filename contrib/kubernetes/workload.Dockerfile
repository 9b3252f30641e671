# What an image does to use the driver of whatever node it runs on. See docs/kubernetes.md, "Images".
FROM debian:13-slim

# The places at which a node's driver and CUDA are mounted. A program that is started without the environment below,
# by cron, sudo or a login shell, finds the libraries by the linker's cache; ldconfig has to run where they are
# mounted, so in the container's entry point: the cache of the image cannot name what is not in it.
RUN printf '%s\n' /usr/local/nvidia/lib64 /usr/local/cuda/lib64 >/etc/ld.so.conf.d/nvidia.conf

# Behind what the image brings itself: it decides.
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/nvidia/bin:/usr/local/cuda/bin \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/local/cuda/lib64

# No libcuda, no libnvidia-ml, no nvidia-smi in the image: they have to be of the very driver that the node has
# loaded. And nothing below /usr/local/nvidia or /usr/local/cuda, which the mounts hide.

# For NVIDIA's own container runtime, where a cluster has it: what it is to bring. Not NVIDIA_VISIBLE_DEVICES=all, by
# which such a runtime gives every GPU of the node to a container that asked for none.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
