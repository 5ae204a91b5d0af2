# CUDA for kernels/*_cuda.cu and core/cuda_backend.cc. Hopper unless CMAKE_CUDA_ARCHITECTURES says
# otherwise (80, 90a and 100 compile). nvcc is CUDACXX, the one on the PATH, or CUDA's usual place.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(TOROID_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
               PATH_SUFFIXES bin)
  if(TOROID_NVCC)
    set(CMAKE_CUDA_COMPILER ${TOROID_NVCC})
  endif()
endif()
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
if(CCACHE_PROGRAM)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows CUDA C++ up to 17
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)  # after enable_language, whose check of the compiler it would break
find_package(CUDAToolkit REQUIRED)
