# Tests that start processes: worlds under mpirun, and scripts.

# toroid_mpi_test(NAME RANKS COMMAND...): one ctest entry that runs COMMAND on RANKS ranks.
set(TOROID_MPIRUN ${MPIEXEC_EXECUTABLE} -q --oversubscribe --allow-run-as-root --bind-to none)
function(toroid_mpi_test name ranks)
  add_test(NAME ${name} COMMAND ${TOROID_MPIRUN} -n ${ranks} ${ARGN})
  set_tests_properties(${name} PROPERTIES TIMEOUT 120 PROCESSORS 2)
endfunction()

add_executable(parallel_mpi_test mpi/conformance_mpi.cc)
target_link_libraries(parallel_mpi_test PRIVATE toroid_test_support)
foreach(ranks 1 2 3 4 8)
  toroid_mpi_test(MpiConformance.Ranks${ranks} ${ranks} $<TARGET_FILE:parallel_mpi_test>)
endforeach()
toroid_mpi_test(MpiConformance.CutMessages 3 $<TARGET_FILE:parallel_mpi_test>
                --message-bytes=1001 --slot-bytes=4096)
if(TOROID_CUDA)
  toroid_mpi_test(MpiConformance.Gpus 2 $<TARGET_FILE:parallel_mpi_test> --gpu)
  set_tests_properties(MpiConformance.Gpus PROPERTIES SKIP_REGULAR_EXPRESSION "SKIPPED: no GPU")
endif()
# A communicator that failed leaves without MPI_Finalize, which mpirun reports: the text decides.
toroid_mpi_test(MpiConformance.HealthIsSticky 3 $<TARGET_FILE:parallel_mpi_test> --fail)
set_tests_properties(MpiConformance.HealthIsSticky PROPERTIES
  PASS_REGULAR_EXPRESSION "PASSED.*1 test" FAIL_REGULAR_EXPRESSION "FAILED")

add_executable(stall_rank mpi/stall_rank.cc)
target_link_libraries(stall_rank PRIVATE toroid_parallel)
add_test(NAME StallWatch.NamesAStoppedRank
         COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/mpi/stall_test.sh $<TARGET_FILE:stall_rank>
                 ${TOROID_MPIRUN})
set_tests_properties(StallWatch.NamesAStoppedRank PROPERTIES TIMEOUT 120 PROCESSORS 2)

# srun without PMIx starts processes that each believe to be alone: every one refuses.
add_test(NAME MpiWorld.RefusesASingletonUnderSlurm COMMAND parallel_mpi_test)
set_tests_properties(MpiWorld.RefusesASingletonUnderSlurm PROPERTIES
  TIMEOUT 60 ENVIRONMENT "SLURM_PROCID=2;SLURM_NTASKS=4;SLURM_LOCALID=2"
  PASS_REGULAR_EXPRESSION "process 2 is alone: Slurm promised 4 ranks.*srun --mpi=pmix -n 4")

# The real binary: python3 e2e/NAME.py BINARY runs every test of the file.
if(TOROID_SERVICES)
  find_program(TOROID_PYTHON python3 REQUIRED)
  foreach(name command_line generate train slurm cluster tls jobs pods pod_returns pools two_hosts pod_hosts)
    add_test(NAME EndToEnd.${name} COMMAND ${TOROID_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${name}.py
                                           $<TARGET_FILE:toroid>)
    set_tests_properties(EndToEnd.${name} PROPERTIES TIMEOUT 900 PROCESSORS 2)
  endforeach()
  add_test(NAME EndToEnd.pod_slow COMMAND ${TOROID_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/pod_slow.py
                                          $<TARGET_FILE:toroid>)
  set_tests_properties(EndToEnd.pod_slow PROPERTIES TIMEOUT 300 PROCESSORS 2 LABELS slow)
  # Ten minutes of it: --seconds 600.
  add_test(NAME EndToEnd.pods_churn
           COMMAND ${TOROID_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/pods_churn.py $<TARGET_FILE:toroid>
                   --seconds 60)
  set_tests_properties(EndToEnd.pods_churn PROPERTIES TIMEOUT 900 PROCESSORS 2 LABELS churn)
  # What judges deploy/two_pods.sh, on made-up runs.
  add_test(NAME Checks.TwoPods
           COMMAND ${TOROID_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/checks/two_pods.py)
  set_tests_properties(Checks.TwoPods PROPERTIES TIMEOUT 60)
  # The demonstration itself.
  foreach(mode exact delayed diloco streaming)
    add_test(NAME Deploy.TwoPods.${mode}
             COMMAND ${CMAKE_SOURCE_DIR}/deploy/two_pods.sh --mode ${mode})
    set_tests_properties(Deploy.TwoPods.${mode} PROPERTIES TIMEOUT 180 RUN_SERIAL ON LABELS slow
                         ENVIRONMENT RUN=${CMAKE_BINARY_DIR}/two_pods-${mode})
  endforeach()
  # These need namespaces of their own; 77 says that they are not allowed here.
  set_tests_properties(EndToEnd.two_hosts EndToEnd.pod_hosts PROPERTIES SKIP_RETURN_CODE 77)
endif()
