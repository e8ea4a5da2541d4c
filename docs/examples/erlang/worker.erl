%% A worker of a pull consumer that asks the sidecar before each pull, and pulls what it is granted.
-module(worker).
-export([main/1]).

-define(ASK_MS, 250).
-define(EXPIRES_MS, 1000).  % a grant is for one pull within one second
-define(MARGIN_MS, 2000).   % the server ends a pull in time: later than this the connection is dead

%% For example: erl -noshell -run worker main 127.0.0.1 4222 ROUTER router beamline.router.v1.decide 100
main([Host, Port, Stream, Consumer, Subject, Batch]) ->
    Name = os:getenv("BACKPRESSURE_NAME", "backpressure"),
    run(#{
        host => Host,
        port => list_to_integer(Port),
        batch => list_to_integer(Batch),
        question => [Name, ".v1.decide.consumer.", nats:encode(list_to_binary(Subject))],
        next => ["$JS.API.CONSUMER.MSG.NEXT.", Stream, ".", Consumer],
        stream => Stream,
        consumer => Consumer,
        unused => 0,
        ask_at => now_ms()
    }).

%% The connection and the worker end together, and start again. An OTP application has a supervisor in place of this.
run(Worker) ->
    Start = fun() -> loop(Worker#{nats => nats:connect(maps:get(host, Worker), maps:get(port, Worker))}) end,
    {_, Monitor} = spawn_monitor(Start),
    receive
        {'DOWN', Monitor, process, _, Reason} -> print("ended: ~0p; again in a second", [Reason])
    end,
    timer:sleep(1000),
    run(Worker).

loop(Worker) ->
    drop_late_replies(),
    case ask(Worker) of
        {0, WaitMs, Next} ->
            timer:sleep(WaitMs),
            loop(Next#{unused := 0});
        {Granted, 0, Next} ->
            Received = pull(Granted, Next),
            loop(Next#{unused := Granted - Received});
        {unknown, Next} ->
            pull(maps:get(batch, Next), Next),
            loop(Next#{unused := 0})
    end.

%% {How many to pull, milliseconds to wait if none, Worker}, or {unknown, Worker}: then pull what you want.
ask(#{batch := Batch, ask_at := AskAt, question := Question, nats := Nats} = Worker) ->
    case now_ms() >= AskAt of
        false ->
            {unknown, Worker};
        true ->
            case grant(nats:request(Nats, Question, question(Worker), ?ASK_MS)) of
                {pull, 0, WaitMs} ->
                    print("granted 0 of ~b: wait ~b ms", [Batch, WaitMs]),
                    {0, WaitMs, Worker};
                {pull, N, _} ->
                    print("granted ~b of ~b", [N, Batch]),
                    {min(N, Batch), 0, Worker};
                {none, Why, PauseMs} ->
                    print("no answer (~p): pull ~b, ask again in ~b ms", [Why, Batch, PauseMs]),
                    {unknown, Worker#{ask_at := now_ms() + PauseMs}}
            end
    end.

%% `held` and `lost` are 0 because the server has counted all acks of this worker before it asks again. One that works on
%% messages while it asks sends their true numbers, or leaves both fields out.
question(#{batch := Batch, stream := Stream, consumer := Consumer, unused := Unused}) ->
    io_lib:format("{\"max_messages\":~b,\"stream\":\"~s\",\"consumer\":\"~s\",\"unused\":~b,\"held\":0,\"lost\":0}", [
        Batch, Stream, Consumer, Unused
    ]).

%% From OTP 27 on json:decode/1 is there. These two names stand nowhere else in a Decision, and inside of a text
%% their quotation marks would be escaped.
grant({ok, Headers, Body}) ->
    case {nats:error_code(Headers), number("max_messages", Body), number("wait_ms", Body)} of
        {none, N, WaitMs} when is_integer(N), is_integer(WaitMs) -> {pull, N, max(50, min(WaitMs, 1000))};
        %% Nobody watches this consumer (404), or the question is wrong and stays so (400).
        {Code, _, _} when Code =:= 404; Code =:= 400 -> {none, Code, 30000};
        {Code, _, _} -> {none, Code, once_a_second()}
    end;
grant(timeout) ->
    {none, timeout, once_a_second()}.

number(Name, Body) ->
    case re:run(Body, ["\"", Name, "\"\\s*:\\s*([0-9]+)"], [{capture, all_but_first, binary}]) of
        {match, [Digits]} -> binary_to_integer(Digits);
        nomatch -> none
    end.

%% Returns how many messages came: each is handled at once, and does not wait for the others of its pull.
pull(N, #{nats := Nats, next := Next}) ->
    Payload = io_lib:format("{\"batch\":~b,\"expires\":~b}", [N, ?EXPIRES_MS * 1000000]),
    Id = nats:start_request(Nats, Next, Payload),
    Received = receive_pulled(Id, N, 0, Nats),
    nats:end_request(Nats, Id),
    Received.

receive_pulled(_, N, N, _) ->
    N;
receive_pulled(Id, N, Received, Nats) ->
    receive
        {nats, Id, <<"$JS.ACK.", _/binary>> = Ack, _, Body} ->
            handle(Body),
            acknowledge(Nats, Ack, Received + 1 =:= N),
            receive_pulled(Id, N, Received + 1, Nats);
        {nats, Id, _, Headers, _} ->
            case nats:error_code(Headers) of
                408 -> ok;  % the time of the pull is over
                Code -> print("pull ended with ~p", [Code]), timer:sleep(?EXPIRES_MS)
            end,
            Received
    after ?EXPIRES_MS + ?MARGIN_MS -> exit(nats_does_not_answer)
    end.

%% A server counts the acks of a consumer one after the other, and a pull may be faster: where the last ack is answered,
%% all of them are counted.
acknowledge(Nats, Ack, true) ->
    nats:request(Nats, Ack, <<"+ACK">>, ?EXPIRES_MS);
acknowledge(Nats, Ack, false) ->
    nats:publish(Nats, Ack, <<"+ACK">>).

%% Your work. If it fails, let the process end: the message is not acknowledged, and comes again.
handle(Body) ->
    timer:sleep(list_to_integer(os:getenv("WORK_MS", "0"))),
    print("handled ~s", [Body]).

%% Answers to questions that nobody waits for any more. There is no pull under way here.
drop_late_replies() ->
    receive
        {nats, _, _, _, _} -> drop_late_replies()
    after 0 -> ok
    end.

once_a_second() -> 700 + rand:uniform(600).

now_ms() -> erlang:monotonic_time(millisecond).

print(Format, Values) -> io:format(Format ++ "~n", Values).
