import { patientStream, trivialServices } from './support-doors-services.ts';
import { startDoors } from './support-doors.ts';

/** A broker's doors in a process of their own: to see it exit. Nothing calls process.exit. */
const { doors, grpcPort, httpPort } = await startDoors({
  services: trivialServices({ watchTask: patientStream(() => undefined) }),
});
process.once('SIGTERM', () => void doors.stop(10_000));
console.log(JSON.stringify({ grpcPort, httpPort }));
