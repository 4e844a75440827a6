// Generates src/gen from proto/ (default), or with --baseline records the contract that `buf breaking` compares with.
// Record a baseline only at a release: it is the promise that clients were given.
import { buf } from './lib/run.mjs';

const command = process.argv.includes('--baseline')
  ? ['build', '--exclude-source-info', '-o', 'proto/baseline.binpb']
  : ['generate'];
const result = await buf(command);
process.stdout.write(result.output);
process.exitCode = result.code;
