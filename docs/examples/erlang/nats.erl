%% A connection to NATS over a plain TCP socket: CONNECT, PING and PONG, publish, request, and pull requests.
-module(nats).
-export([connect/2, publish/3, request/4, start_request/3, end_request/2, error_code/1, encode/1]).

-define(CONNECT_MS, 5000).
%% A server sends a PING every two minutes: without any byte for longer, the connection is dead.
-define(SILENCE_MS, 150000).

%% Returns the connection. Replies are sent to the calling process as {nats, Id, ReplySubject, Headers, Payload}, with
%% the Id of their request. When the connection ends, the caller ends too (link).
connect(Host, Port) ->
    Options = [binary, {active, false}, {packet, line}, {buffer, 65536}, {nodelay, true}, {send_timeout, ?CONNECT_MS}],
    {ok, Socket} = gen_tcp:connect(Host, Port, Options, ?CONNECT_MS),
    {ok, <<"INFO ", _/binary>>} = gen_tcp:recv(Socket, 0, ?CONNECT_MS),
    %% What users.conf lets consumers subscribe to.
    Inbox = [<<"_INBOX_consumer.">>, integer_to_binary(rand:uniform(1 bsl 62), 36)],
    %% `headers` and `no_responders`: else errors cannot be seen, and nobody there is a timeout.
    %% With credentials, add `user` and `pass` here.
    ok = gen_tcp:send(Socket, [
        <<"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"erlang\",\"version\":\"1\",">>,
        <<"\"protocol\":1,\"headers\":true,\"no_responders\":true}\r\n">>
    ]),
    Owner = self(),
    spawn_link(fun() -> read(Socket, Owner) end),
    #{socket => Socket, inbox => Inbox}.

publish(#{socket := Socket}, Subject, Payload) ->
    ok = gen_tcp:send(Socket, pub([Subject], Payload)).

%% Returns {ok, Headers, Payload}, or timeout.
request(Nats, Subject, Payload, TimeoutMs) ->
    Id = start_request(Nats, Subject, Payload),
    Reply = receive
        {nats, Id, _, Headers, Body} -> {ok, Headers, Body}
    after TimeoutMs -> timeout
    end,
    end_request(Nats, Id),
    Reply.

%% Each request has a subscription of its own: what a pull delivers has the subject that it was published on, so only
%% the subscription (the Id) shows which pull it belongs to. All reply subjects begin alike: the sidecar takes the reply
%% subject without its last token for the asker.
start_request(#{socket := Socket, inbox := Inbox}, Subject, Payload) ->
    Id = integer_to_binary(erlang:unique_integer([positive])),
    Reply = [Inbox, $., Id],
    ok = gen_tcp:send(Socket, [<<"SUB ">>, Reply, $\s, Id, <<"\r\n">>, pub([Subject, $\s, Reply], Payload)]),
    Id.

end_request(#{socket := Socket}, Id) ->
    ok = gen_tcp:send(Socket, [<<"UNSUB ">>, Id, <<"\r\n">>]).

%% The code of a service error (`Nats-Service-Error-Code: 404`) or of the server (`NATS/1.0 503`: nobody is there).
error_code(Headers) ->
    Pattern = "(?mi)^(?:NATS/1\\.0 |Nats-Service-Error-Code: *)([0-9]{3})",
    case re:run(Headers, Pattern, [{capture, all_but_first, binary}]) of
        {match, [Code]} -> binary_to_integer(Code);
        nomatch -> none
    end.

%% A subject as the tail of a subject of the sidecar: `orders.*.created` is `orders.=2A.created`.
encode(Subject) ->
    <<<<(encoded(Byte))/binary>> || <<Byte>> <= Subject>>.

encoded(Byte) when Byte >= $A, Byte =< $Z; Byte >= $a, Byte =< $z; Byte >= $0, Byte =< $9 -> <<Byte>>;
encoded(Byte) when Byte =:= $-; Byte =:= $_; Byte =:= $/; Byte =:= $. -> <<Byte>>;
encoded(Byte) -> iolist_to_binary(io_lib:format("=~2.16.0B", [Byte])).

pub(Subjects, Payload) ->
    [<<"PUB ">>, Subjects, $\s, integer_to_binary(iolist_size(Payload)), <<"\r\n">>, Payload, <<"\r\n">>].

read(Socket, Owner) ->
    case gen_tcp:recv(Socket, 0, ?SILENCE_MS) of
        {ok, Line} -> handle(binary:split(Line, [<<" ">>, <<"\r\n">>], [global, trim_all]), Socket, Owner);
        {error, Reason} -> exit({nats, Reason})
    end,
    read(Socket, Owner).

handle([<<"PING">>], Socket, _) ->
    ok = gen_tcp:send(Socket, <<"PONG\r\n">>);
handle([<<"MSG">>, _Subject, Id, Size], Socket, Owner) ->
    deliver(Id, none, <<"0">>, Size, Socket, Owner);
handle([<<"MSG">>, _Subject, Id, Reply, Size], Socket, Owner) ->
    deliver(Id, Reply, <<"0">>, Size, Socket, Owner);
handle([<<"HMSG">>, _Subject, Id, HeaderSize, Size], Socket, Owner) ->
    deliver(Id, none, HeaderSize, Size, Socket, Owner);
handle([<<"HMSG">>, _Subject, Id, Reply, HeaderSize, Size], Socket, Owner) ->
    deliver(Id, Reply, HeaderSize, Size, Socket, Owner);
handle([<<"-ERR">> | Text], _, _) ->  % after a fatal one the server closes the connection
    io:format(standard_error, "nats: ~s~n", [lists:join($\s, Text)]);
handle(_InfoOrOk, _, _) ->
    ok.

deliver(Id, Reply, Headers, All, Socket, Owner) ->
    HeaderSize = binary_to_integer(Headers),
    BodySize = binary_to_integer(All) - HeaderSize,
    ok = inet:setopts(Socket, [{packet, raw}]),
    {ok, <<Header:HeaderSize/binary, Body:BodySize/binary, "\r\n">>} =
        gen_tcp:recv(Socket, HeaderSize + BodySize + 2, ?SILENCE_MS),
    ok = inet:setopts(Socket, [{packet, line}]),
    Owner ! {nats, Id, Reply, Header, Body}.
