// Detects objects in an image with ONNX Runtime and OpenCV: detect model.onnx street.jpg drawn.png
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

// Returns a value of the model's metadata, stored as JSON.
nlohmann::json metadata(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto stored = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
  if (!stored) throw std::runtime_error(std::string("the model has no metadata ") + key);
  return nlohmann::json::parse(stored.get());
}

int main(int count, char** args) try {
  if (count != 4) throw std::runtime_error("usage: detect MODEL IMAGE DRAWN");
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING);
  Ort::Session session(environment, args[1], Ort::SessionOptions());
  const auto input = metadata(session, "input"), resize = metadata(session, "resize");
  const auto classes = metadata(session, "classes");
  if (input["layout"] != "nhwc" || input["dtype"] != "uint8")
    throw std::runtime_error("this example is for --layout nhwc --input uint8, the defaults");

  cv::Mat image = cv::imread(args[2]);  // BGR, with EXIF orientation applied
  if (image.empty()) throw std::runtime_error(std::string(args[2]) + ": not an image");
  const double scale =
      std::min(resize["short_side"].get<double>() / std::min(image.rows, image.cols),
               resize["long_side"].get<double>() / std::max(image.rows, image.cols));
  const cv::Size size(std::floor(image.cols * scale + 0.5),
                      std::floor(image.rows * scale + 0.5));
  cv::Mat resized;
  cv::resize(image, resized, size, 0, 0, scale < 1 ? cv::INTER_AREA : cv::INTER_LINEAR);
  if (input["channels"] == "RGB") cv::cvtColor(resized, resized, cv::COLOR_BGR2RGB);

  const int64_t shape[] = {1, resized.rows, resized.cols, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto batch = Ort::Value::CreateTensor<uint8_t>(memory, resized.data, resized.total() * 3,
                                                       shape, 4);
  const std::string name = input["name"];
  const char* inputs[] = {name.c_str()};
  const char* outputs[] = {"boxes", "scores", "classes", "num_detections"};
  const auto detections = session.Run(Ort::RunOptions(), inputs, &batch, 1, outputs, 4);
  const auto* box = detections[0].GetTensorData<float>();  // left, top, right, bottom
  const auto* score = detections[1].GetTensorData<float>();
  const auto* class_id = detections[2].GetTensorData<int64_t>();

  const double x = double(image.cols) / size.width, y = double(image.rows) / size.height;
  for (int64_t i = 0; i < *detections[3].GetTensorData<int64_t>(); ++i, box += 4) {
    if (score[i] <= 0.5) break;  // sorted by descending score
    const cv::Point first(cvRound(box[0] * x), cvRound(box[1] * y));
    const cv::Point last(cvRound(box[2] * x), cvRound(box[3] * y));
    const std::string label = cv::format("%s %.2f", classes[class_id[i]].get<std::string>().c_str(),
                                         score[i]);
    std::cout << label << ' ' << first.x << ' ' << first.y << ' ' << last.x << ' ' << last.y
              << '\n';
    cv::rectangle(image, first, last, {0, 159, 230}, 2);
    cv::putText(image, label, {first.x, std::max(first.y - 4, 12)}, cv::FONT_HERSHEY_SIMPLEX,
                0.5, {0, 159, 230});
  }
  return cv::imwrite(args[3], image) ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
