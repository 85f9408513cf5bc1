<?php
// Publishes to a room over HTTP, by the first of several nodes that takes it, in PHP without packages.
//
//     NODES=http://127.0.0.1:8081,http://127.0.0.1:8082 API_KEY=... php publish.php ROOM EVENT DATA
//
// Behind a load balancer that does the same, as nginx/unisono.conf does, one address is enough.
declare(strict_types=1);

$nodes = explode(',', getenv('NODES') ?: 'http://127.0.0.1:8080');
$key = getenv('API_KEY') ?: '';

// Returns the answer of the node that took it.
function publish(array $nodes, string $key, string $room, string $event, mixed $data): object
{
    $body = json_encode(['room' => $room, 'event' => $event, 'data' => $data]);
    foreach ($nodes as $node) {
        $url = parse_url($node);
        $secure = $url['scheme'] === 'https';
        $port = $url['port'] ?? ($secure ? 443 : 80);
        $address = ($secure ? 'tls://' : 'tcp://') . "{$url['host']}:$port";
        $stream = @stream_socket_client($address, $code, $message, 10);
        if ($stream === false) {
            continue; // nothing was sent
        }
        stream_set_timeout($stream, 10);
        // From here on an error may come after the publication: to try again could publish it twice.
        fwrite($stream, "POST /api/v1/publish HTTP/1.0\r\nHost: {$url['host']}:$port\r\n"
            . "Authorization: Bearer $key\r\nContent-Type: application/json\r\n"
            . 'Content-Length: ' . strlen($body) . "\r\n\r\n$body");
        $answer = stream_get_contents($stream);
        fclose($stream);
        if (!preg_match('#^HTTP/1\.\d (\d+)#', $answer, $status)) {
            throw new RuntimeException('no answer: it may have been published');
        }
        $text = explode("\r\n\r\n", $answer, 2)[1] ?? '';
        if ($status[1] === '503') {
            continue; // the node did nothing: it is about to stop, or has too much to do
        }
        if ($status[1] !== '200') {
            throw new RuntimeException("{$status[1]}: $text");
        }
        return json_decode($text, flags: JSON_THROW_ON_ERROR);
    }
    throw new RuntimeException('no node takes it');
}

[, $room, $event, $data] = $argv;
echo publish($nodes, $key, $room, $event, json_decode($data))->status, "\n";
