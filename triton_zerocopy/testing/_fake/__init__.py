"""A Triton server in Python, which plays what no real server does on demand.

What runs in the child process, from the bottom up (imports go downward only)::

    __main__      the child: reads its orders, starts the rest, ends
    control       orders of the test, one JSON line each
    grpc_front    http_front       the two protocols
    grpc_calls    http_calls       the calls of each
    grpc_infer    http_infer       an infer request and its answer, as each protocol forms them
    http_wire     json_values      HTTP/1.1 and JSON
    service       what both protocols offer, and how an infer call goes
    repository    the models by name: ready, loading, gone
    models        a model: its queue, its instances, its numbers
    ensembles     scheduling       how a request becomes outputs
    checks        configs          what a request must be like; config.pbtxt
    python_models pb_utils         a model.py, and what it imports
    regions       what is registered, and who uses it
    cuda          mappings         memory of the client, mapped
    garbling      incidents        faults, as they befall a call
    tensors       refusals         values that the above pass around
    versions                       which release does what

In the process of the test: `handle` is what users see, `launching` starts the child.
"""
