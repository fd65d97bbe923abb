# Are the CUDA kernels built?  Sets CARVE_WITH_CUDA and enables the language.
set(CARVE_WITH_CUDA OFF)
if(CARVE_CUDA STREQUAL "AUTO" OR CARVE_CUDA)
  # nvcc is often installed without being on the PATH.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(
      CARVE_NVCC nvcc
      HINTS ${CUDAToolkit_ROOT} ENV CUDA_HOME ENV CUDA_PATH
      PATHS /usr/local/cuda
      PATH_SUFFIXES bin)
    if(CARVE_NVCC)
      set(CMAKE_CUDA_COMPILER ${CARVE_NVCC})
    endif()
  endif()
  # Without a GPU at hand "native" fails, so the architectures are named: 90a
  # for the tuned kernels, 80 for the general path.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90a)
  endif()
  if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
    enable_language(CUDA)
    set(CARVE_WITH_CUDA ON)
  elseif(NOT CARVE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "CARVE_CUDA=${CARVE_CUDA}, but there is no nvcc: "
                        "set CMAKE_CUDA_COMPILER, or CARVE_CUDA=OFF")
  endif()
endif()
message(STATUS "carve: CUDA kernels ${CARVE_WITH_CUDA}")
