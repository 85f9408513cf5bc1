<?php
// A chat's backend over HTTP, in PHP without packages: php -S 127.0.0.1:8000 webhook.php
//
// The configuration of the nodes (unisono.toml); the secret is `whsec_` and the base64 of any 32 bytes or so:
//
//     [hooks]
//     url = "http://127.0.0.1:8000/"
//     secret = "whsec_dGhlIHNlY3JldCBvZiB0aGUgZXhhbXBsZXMsIDMyQg=="
//
//     [[rooms]]
//     pattern = "/chat-rooms/{id}"
//     client_events = "forward"    # what clients say comes here, and nowhere else
//     events = ["opened"]          # and so does the word that somebody came
declare(strict_types=1);

$secret = getenv('WEBHOOK_SECRET') ?: 'whsec_dGhlIHNlY3JldCBvZiB0aGUgZXhhbXBsZXMsIDMyQg==';

// Whether the nodes have sent this, and not long ago: https://www.standardwebhooks.com
function is_signed(string $body, string $secret): bool
{
    $id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
    $time = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
    $key = base64_decode(substr($secret, strlen('whsec_')));
    $right = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$time.$body", $key, true));
    foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $signature) {
        if (hash_equals($right, $signature)) {
            return abs(time() - (int) $time) < 300;
        }
    }
    return false;
}

// Says in $actions what the nodes are to do; what it returns is the answer to the client.
function handle(object $event, array &$actions): ?array
{
    if ($event->type === 'opened') {
        $welcome = ['text' => "Welcome to {$event->room}"];
        $actions[] = ['emit' => ['to' => $event->socket, 'event' => 'welcome', 'data' => $welcome]];
        return null;
    }
    if ($event->type !== 'message') {
        return null;
    }
    $said = ['from' => $event->socket, 'text' => $event->data->text ?? null];
    switch ($event->event) {
        case 'new message':
            $actions[] = ['publish' => ['room' => $event->room, 'event' => 'new message', 'data' => $said]];
            return ['ack' => ['sent' => true]];
        case 'private message':
            $to = $event->data->to ?? null;
            $actions[] = ['emit' => ['to' => $to, 'event' => 'private message', 'data' => $said]];
            return ['ack' => ['sent' => true]];
        default:
            return ['error' => "there is no event '{$event->event}'"];
    }
}

$body = file_get_contents('php://input');
if (!is_signed($body, $secret)) {
    http_response_code(401);
    exit;
}
$answers = [];
$actions = [];
// Objects stay objects: as arrays, {} and [] would be the same.
foreach (json_decode($body)->events as $event) {
    $answer = handle($event, $actions);
    if ($answer !== null) {
        $answers[$event->id] = $answer;
    }
}
header('Content-Type: application/json');
echo json_encode(['answers' => $answers, 'actions' => $actions]);
