"""What was promised, while everything breaks that can.

Each test here was seen to fail when what guards its promise was taken out:

=====================================================  ==========================================
without                                                fails
=====================================================  ==========================================
a slot is held until the server answered               callers, peer_pattern, soak: wrong results
an end without an answer is in doubt                   link: a_call_that_was_cut_writes_late
the status as proof that the server let go             link: cut_in_mid_call, registrations left
a slot in doubt comes back                             link: cut_in_mid_call, slots missing
a lost region is registered anew                       memory: a_stale_name
a name that is another's is not called by              memory: a_name_that_somebody_else_has
what the server forgot is crossed off                  server: killed_and_restarted, files left
gRPC tries again every half second                     server: killed_and_restarted, too late
memory is allocated, not only promised                 limits: a_small_dev_shm, killed by SIGBUS
a slot that cannot grow takes what it needs            limits: a_small_dev_shm
the server's shapes are measured                       garbage: hostile_answers
a forked process is told apart                         programs: a_client_made_before_the_fork
=====================================================  ==========================================
"""
